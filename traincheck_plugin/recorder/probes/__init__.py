"""Probes: each observes one kind of thing and can be attached and detached without trace."""
