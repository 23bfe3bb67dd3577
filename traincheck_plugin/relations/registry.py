"""The relations there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.relations.api_contain import APIContainRelation
from traincheck_plugin.relations.base import Relation
from traincheck_plugin.relations.broadcasts import BroadcastRelation
from traincheck_plugin.relations.call_count import CallCountRelation
from traincheck_plugin.relations.clipped_gradients import ClippedGradientsRelation
from traincheck_plugin.relations.connections import ConnectionsRelation
from traincheck_plugin.relations.consistency import ConsistencyRelation
from traincheck_plugin.relations.consistent_argument import ConsistentArgumentRelation
from traincheck_plugin.relations.consistent_input_output import ConsistentInputOutputRelation
from traincheck_plugin.relations.consistent_output import ConsistentOutputRelation
from traincheck_plugin.relations.continuity import ContinuityRelation
from traincheck_plugin.relations.copies import CopyRelation
from traincheck_plugin.relations.derivations import DerivationsRelation
from traincheck_plugin.relations.distinct_argument import DistinctArgumentRelation
from traincheck_plugin.relations.distinct_inputs import DistinctInputsRelation
from traincheck_plugin.relations.eval_mode import EvalModeRelation
from traincheck_plugin.relations.evaluated_model import EvaluatedModelRelation
from traincheck_plugin.relations.eventual_call import EventualCallRelation
from traincheck_plugin.relations.eventual_change import EventualChangeRelation
from traincheck_plugin.relations.exclusive_change import ExclusiveChangeRelation
from traincheck_plugin.relations.frozen_parts import FrozenPartsRelation
from traincheck_plugin.relations.function_cover import FunctionCoverRelation
from traincheck_plugin.relations.function_lead import FunctionLeadRelation
from traincheck_plugin.relations.gradient_flow import GradientFlowRelation
from traincheck_plugin.relations.gradients_kept import GradientsKeptRelation
from traincheck_plugin.relations.gradients_used import GradientsUsedRelation
from traincheck_plugin.relations.held_out_samples import HeldOutSamplesRelation
from traincheck_plugin.relations.layer_inputs import LayerInputsRelation
from traincheck_plugin.relations.load import LoadRelation
from traincheck_plugin.relations.loss_formula import LossFormulaRelation
from traincheck_plugin.relations.loss_scaling import LossScalingRelation
from traincheck_plugin.relations.loss_share import LossShareRelation
from traincheck_plugin.relations.loss_terms import LossTermsRelation
from traincheck_plugin.relations.new_data import NewDataRelation
from traincheck_plugin.relations.new_gradients import NewGradientsRelation
from traincheck_plugin.relations.new_loss import NewLossRelation
from traincheck_plugin.relations.one_epoch import OneEpochRelation
from traincheck_plugin.relations.operation_settings import OperationSettingsRelation
from traincheck_plugin.relations.optimizer_kept import OptimizerKeptRelation
from traincheck_plugin.relations.padding_targets import PaddingTargetsRelation
from traincheck_plugin.relations.random_draws import RandomDrawsRelation
from traincheck_plugin.relations.rank_consistency import RankConsistencyRelation
from traincheck_plugin.relations.rank_distinct_argument import RankDistinctArgumentRelation
from traincheck_plugin.relations.recurring_samples import RecurringSamplesRelation
from traincheck_plugin.relations.sample_targets import SampleTargetsRelation
from traincheck_plugin.relations.schedule_length import ScheduleLengthRelation
from traincheck_plugin.relations.schedule_metric import ScheduleMetricRelation
from traincheck_plugin.relations.schedule_moves import ScheduleMovesRelation
from traincheck_plugin.relations.schedule_pace import SchedulePaceRelation
from traincheck_plugin.relations.schedule_resumed import ScheduleResumedRelation
from traincheck_plugin.relations.scheduled_optimizer import ScheduledOptimizerRelation
from traincheck_plugin.relations.separate_modules import SeparateModulesRelation
from traincheck_plugin.relations.sequence_axis import SequenceAxisRelation
from traincheck_plugin.relations.shared_samples import SharedSamplesRelation
from traincheck_plugin.relations.shuffled_data import ShuffledDataRelation
from traincheck_plugin.relations.stored_data import StoredDataRelation
from traincheck_plugin.relations.target_lag import TargetLagRelation
from traincheck_plugin.relations.teacher_mode import TeacherModeRelation
from traincheck_plugin.relations.threshold import ThresholdRelation
from traincheck_plugin.relations.unmixed_gradients import UnmixedGradientsRelation
from traincheck_plugin.relations.value_range import ValueRangeRelation
from traincheck_plugin.relations.var_periodic_change import VarPeriodicChangeRelation
from traincheck_plugin.relations.var_state import VarStateRelation

ENTRY_POINTS = "traincheck_plugin.relations"
"""The entry-point group under which other packages add relations."""

BUILT_IN: tuple[Relation, ...] = (
    APIContainRelation(),
    ConsistencyRelation(),
    RankConsistencyRelation(),
    ContinuityRelation(),
    CopyRelation(),
    LoadRelation(),
    ConsistentOutputRelation(),
    ConsistentInputOutputRelation(),
    ConsistentArgumentRelation(),
    FunctionCoverRelation(),
    FunctionLeadRelation(),
    BroadcastRelation(),
    ThresholdRelation(),
    CallCountRelation(),
    ExclusiveChangeRelation(),
    FrozenPartsRelation(),
    EvalModeRelation(),
    TeacherModeRelation(),
    EvaluatedModelRelation(),
    SeparateModulesRelation(),
    EventualCallRelation(),
    SchedulePaceRelation(),
    ScheduleMovesRelation(),
    ScheduleLengthRelation(),
    ScheduleMetricRelation(),
    ScheduledOptimizerRelation(),
    ScheduleResumedRelation(),
    GradientsKeptRelation(),
    GradientFlowRelation(),
    GradientsUsedRelation(),
    NewGradientsRelation(),
    UnmixedGradientsRelation(),
    ClippedGradientsRelation(),
    NewLossRelation(),
    LossFormulaRelation(),
    LossTermsRelation(),
    LayerInputsRelation(),
    ConnectionsRelation(),
    DerivationsRelation(),
    OperationSettingsRelation(),
    RandomDrawsRelation(),
    LossScalingRelation(),
    LossShareRelation(),
    OneEpochRelation(),
    OptimizerKeptRelation(),
    VarPeriodicChangeRelation(),
    EventualChangeRelation(),
    VarStateRelation(),
    DistinctArgumentRelation(),
    DistinctInputsRelation(),
    SharedSamplesRelation(),
    RecurringSamplesRelation(),
    HeldOutSamplesRelation(),
    NewDataRelation(),
    StoredDataRelation(),
    ShuffledDataRelation(),
    SequenceAxisRelation(),
    ValueRangeRelation(),
    TargetLagRelation(),
    PaddingTargetsRelation(),
    SampleTargetsRelation(),
    RankDistinctArgumentRelation(),
)


@cache
def relations() -> Mapping[str, Relation]:
    """Return every relation by its name, those of other packages included."""
    known = {relation.name: relation for relation in BUILT_IN}
    for entry_point in entry_points(group=ENTRY_POINTS):
        relation = entry_point.load()()
        known.setdefault(relation.name, relation)
    return known


def choose(
    enable: Iterable[str] | None = None, disable: Iterable[str] | None = None
) -> tuple[Relation, ...]:
    """Return the relations named in *enable* (all when None) less those in *disable*.

    Raises:
        InvariantError: a name is not that of a relation.
    """
    known = relations()
    wanted = list(known) if enable is None else list(enable)
    unwanted = list(disable or ())
    for name in (*wanted, *unwanted):
        if name not in known:
            raise InvariantError(
                f"unknown relation {name!r}; the relations are {', '.join(sorted(known))}"
            )
    return tuple(known[name] for name in wanted if name not in unwanted)
