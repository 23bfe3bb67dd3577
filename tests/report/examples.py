"""Checked runs to report on."""

from __future__ import annotations

from typing import Any

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.checker.violation import Outcome, Violation
from traincheck_plugin.invariants.model import APIParam, Evidence, Invariant, VarTypeParam
from traincheck_plugin.invariants.precondition import Clause, Precondition
from traincheck_plugin.relations.base import Cause

TRAINING = Precondition(
    alternatives=((Clause(type="constant", prop_name="meta_vars.stage", values=("training",)),),)
)

FROZEN = Cause(
    fact="requires_grad=False",
    subjects=("_fc.weight", "_fc.bias"),
    text="Both parameters that it holds (_fc.weight, _fc.bias) have requires_grad=False; the "
    "parameters that do require gradients (all BatchNorm) are in no optimizer.",
)


def invariant(api: str, attribute: str, **options: Any) -> Invariant:
    """Return an invariant about what a call of *api* does to *attribute*."""
    defaults: dict[str, Any] = {
        "relation": "APIContainRelation",
        "params": (
            APIParam(api_full_name=api),
            VarTypeParam(var_type="torch.nn.Parameter", attr_name=attribute),
        ),
        "precondition": TRAINING,
        "evidence": Evidence(
            num_positive_examples=120, num_occurrences=120, num_held_out=40, num_runs=2
        ),
        "text_description": f"{api} changes {attribute} of some parameters",
    }
    return Invariant(**(defaults | options))


STEP = invariant("torch.optim.Optimizer.step", "data", severity="critical")
CLEAR = invariant("torch.optim.Optimizer.zero_grad", "grad", severity="warning")
RATE = invariant("torch.optim.lr_scheduler.LRScheduler.step", "lr", severity="info")
NORM = invariant("torch.Tensor.backward", "grad_norm", severity="warning")
EVAL = invariant("torch.nn.Module.eval", "value", severity="warning")


def violation(of: Invariant, message: str, **options: Any) -> Violation:
    """Return a violation at step 0 of rank 0 of a training run."""
    defaults: dict[str, Any] = {
        "cause": None,
        "step": 0,
        "epoch": 0,
        "stage": "training",
        "rank": 0,
        "source": "examples/84911.py:152 in train",
        "sequence": 7,
        "time_ns": 500_000_000,
        "num_occurrences": 40,
        "last_step": 39,
    }
    return Violation(invariant=of, message=message, **(defaults | options))


def result(outcomes: list[Outcome], diagnoses: list[Diagnosis], **options: Any) -> CheckResult:
    """Return what a check of a run of 40 steps came to."""
    defaults: dict[str, Any] = {
        "run_path": "runs/84911",
        "num_windows": 42,
        "num_steps": 40,
        "duration_ns": 2_000_000_000,
        "problems": (),
    }
    return CheckResult(outcomes=tuple(outcomes), diagnoses=tuple(diagnoses), **(defaults | options))


def healthy(**options: Any) -> CheckResult:
    """Return the check of a healthy run, on which one invariant was not triggered."""
    outcomes = [
        Outcome(invariant=STEP, num_triggered=40),
        Outcome(invariant=CLEAR, num_triggered=39),
        Outcome(invariant=RATE),
    ]
    return result(outcomes, [], run_path="runs/healthy", **options)


def buggy(**options: Any) -> CheckResult:
    """Return the check of a run in which an optimizer holds nothing but frozen parameters."""
    step = violation(STEP, "Adadelta.step updated 0 of 2 parameters", cause=FROZEN)
    clear = violation(CLEAR, "zero_grad cleared none", cause=FROZEN, sequence=3)
    rate = violation(
        RATE, "StepLR.step left lr as it was", step=3, sequence=99, num_occurrences=1, last_step=3
    )
    outcomes = [
        Outcome(invariant=NORM, num_triggered=40),
        Outcome(invariant=CLEAR, num_triggered=40, violations=[clear]),
        Outcome(invariant=STEP, num_triggered=40, violations=[step]),
        Outcome(invariant=RATE, num_triggered=1, violations=[rate]),
        Outcome(invariant=EVAL),
    ]
    diagnoses = [
        Diagnosis(
            message="Adadelta.step updated 0 of 2 parameters; zero_grad cleared none",
            cause=FROZEN.text,
            severity="critical",
            source=step.source,
            violations=(step, clear),
        ),
        Diagnosis(
            message=rate.message,
            cause="",
            severity="info",
            source=rate.source,
            violations=(rate,),
        ),
    ]
    return result(outcomes, diagnoses, **options)


def unchecked(**options: Any) -> CheckResult:
    """Return the check of a run in which the checker failed on one invariant."""
    outcomes = [
        Outcome(invariant=STEP, num_triggered=40),
        Outcome(invariant=CLEAR, num_triggered=3, error="checker error: KeyError: 'grad'"),
    ]
    return result(outcomes, [], **options)
