"""Every name that crosses a process, in one place: the group, labels, conditions, reasons, metrics, bins."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

GROUP: Final = "reasonscale.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "ReasoningModel"
PLURAL: Final = "reasoningmodels"
SINGULAR: Final = "reasoningmodel"
SHORT_NAME: Final = "rmodel"
FIELD_MANAGER: Final = "reasonscale"

LABEL_MODEL: Final = f"{GROUP}/model"
DEPLOYMENT_INGRESS: Final = "Ingress"  # of Serve's; the others hold engines
LABEL_ROLE: Final = f"{GROUP}/role"
ANNOTATION_HOLD: Final = f"{GROUP}/hold"
ANNOTATION_UPDATE: Final = f"{GROUP}/update"
ANNOTATION_REVISION: Final = f"{GROUP}/render-revision"
ANNOTATION_RENDERED: Final = f"{GROUP}/rendered"  # on the RayService: digests of what was rendered, see render/marks.py
ANNOTATION_SPARE: Final = f"{GROUP}/spare-replicas"  # on the RayService: so many of its number are for a rollout alone
ANNOTATION_TOLERATIONS: Final = (
    f"{GROUP}/tolerations"  # on the engines' pod template: a digest of what KubeRay does not compare
)
ANNOTATION_ENGINES: Final = f"{GROUP}/engine-revision"  # on the head's pod template: set by a Surge

# Lower edges, in tokens generated so far, of the bins that every length is counted in. About three to the doubling
# in the range where chains end, so that a hazard is nearly constant within a bin; the last bin is open.
TOKEN_BINS: Final[tuple[int, ...]] = (
    0, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768, 65536,
)  # fmt: skip

# Classes of requests when the resource names none, by what was asked of the chain.
CLASS_OFF: Final = "off"
CLASS_LOW: Final = "low"
CLASS_MEDIUM: Final = "medium"
CLASS_HIGH: Final = "high"
EFFORT_CLASSES: Final[tuple[str, ...]] = (CLASS_OFF, CLASS_LOW, CLASS_MEDIUM, CLASS_HIGH)
CLASS_OTHER: Final = "other"  # what does not fit MAX_CLASSES folds into this one
MAX_CLASSES: Final = 16
MAX_SERIES_PER_REPLICA: Final = 500

PHASE_REASONING: Final = "reasoning"
PHASE_ANSWERING: Final = "answering"

# The ledger's metrics. Inside Ray they come out with RAY_PREFIX and labels of Ray's own.
RAY_PREFIX: Final = "ray_"
M_LEDGER_TIME: Final = "reasonscale_ledger_time_seconds"
M_WAITING: Final = "reasonscale_requests_waiting"
M_WAITING_PROMPT: Final = "reasonscale_waiting_prompt_tokens"
M_INFLIGHT: Final = "reasonscale_requests_inflight"  # phase, bin
M_INFLIGHT_PROMPT: Final = "reasonscale_inflight_prompt_tokens"  # bin
M_REACHED: Final = "reasonscale_length_reached_total"  # bin
M_ENDED: Final = "reasonscale_length_ended_total"  # bin
M_ARRIVALS: Final = "reasonscale_arrivals_total"
M_PROMPT_TOKENS: Final = "reasonscale_prompt_tokens_total"
M_REASONING_TOKENS: Final = "reasonscale_reasoning_tokens_total"
M_ANSWER_TOKENS: Final = "reasonscale_answer_tokens_total"
M_BUDGET_EXHAUSTED: Final = "reasonscale_budget_exhausted_total"
M_REJECTED: Final = "reasonscale_rejected_total"  # reason; each try of one that comes back
# The ingress', each of a model that may sleep at zero.
M_INGRESS_TIME: Final = "reasonscale_ingress_time_seconds"  # unix time of the last write
M_INGRESS_REQUESTS: Final = "reasonscale_ingress_requests"  # all that it has, held ones among them
M_HELD: Final = "reasonscale_held_requests"  # waiting for a replica to start
M_HELD_BYTES: Final = "reasonscale_held_bytes"  # of their bodies
M_WAKE: Final = "reasonscale_wake_seconds"  # from the first request at zero to a ready replica
M_RESUMES: Final = "reasonscale_resumes_total"  # outcome
M_RESUME_PAUSE: Final = "reasonscale_resume_pause_seconds"  # from an engine's loss to the next token
# The gate's, at the ingress: what is not in an engine yet. Counted beside the ledgers, never in them.
M_GATE_TIME: Final = "reasonscale_gate_time_seconds"  # unix time of the last write
M_GATE_WAITING: Final = "reasonscale_gate_waiting"
M_GATE_PROMPT: Final = "reasonscale_gate_waiting_prompt_tokens"
M_GATE_ENTERED: Final = (
    "reasonscale_gate_entered_total"  # that came, let in or refused; who comes back as told is not counted again
)
M_GATE_REFUSED: Final = "reasonscale_gate_refused_total"  # of these, told to come back with 429; each once, as above
M_GATE_SENT: Final = "reasonscale_gate_sent_total"  # to an engine, whose ledger then counts an arrival
M_GATE_WAIT: Final = "reasonscale_gate_wait_seconds"
M_PRESSURE: Final = "reasonscale_pressure_step"  # steps that default budgets are shrunk by
M_SHRUNK: Final = "reasonscale_budgets_shrunk_total"
M_RESUME_OFF: Final = (
    "reasonscale_resume_off"  # 1 while lost engines' requests are not handed on, since too many were lost
)
M_FETCHING: Final = "reasonscale_fetching_weights"  # of a replica that starts: 1 while it fetches, else 0
M_DRAINING: Final = "reasonscale_draining"  # 1 where the replica was told to go and finishes what it has
M_ASLEEP: Final = "reasonscale_replica_asleep"  # 1 while the replica's engine sleeps, 0 while it could
M_FALL: Final = "reasonscale_replica_fall_asleep_seconds"  # how long it last took
M_WOKE: Final = "reasonscale_replica_woke_seconds"
M_REPLICA: Final = (
    "reasonscale_replica_since_seconds"  # since when a replica serves, unix time; says who and where it is
)
M_KV_CAPACITY: Final = "reasonscale_kv_capacity_tokens"
M_KV_USED: Final = "reasonscale_kv_used_tokens"
M_PREEMPTIONS: Final = "reasonscale_preemptions_total"
M_STEPS: Final = "reasonscale_steps_total"
M_STEP_SECONDS: Final = "reasonscale_step_seconds_total"
M_STEP_BATCH: Final = "reasonscale_step_batch_total"  # sum over steps of requests that decoded
M_STEP_KV: Final = "reasonscale_step_kv_tokens_total"  # sum over steps of KV tokens held
M_STEP_PREFILL: Final = "reasonscale_step_prefill_tokens_total"  # prompt tokens computed
M_TTFT: Final = "reasonscale_time_to_first_token_seconds"
M_TTFAT: Final = "reasonscale_time_to_first_answer_token_seconds"
M_TPOT: Final = "reasonscale_time_per_output_token_seconds"
M_E2E: Final = "reasonscale_e2e_seconds"

# An emptied replica gets requests again so long after drain.max: by then whoever had it emptied has let it go, or is gone.
EMPTIED_MORE_S: Final = 120.0

LABEL_METRIC_MODEL: Final = "model"
LABEL_METRIC_CLASS: Final = "cls"
LABEL_METRIC_BIN: Final = "bin"  # the bin's lower edge, as a decimal number
LABEL_METRIC_PHASE: Final = "phase"
LABEL_METRIC_REASON: Final = "reason"
LABEL_METRIC_OUTCOME: Final = "outcome"
LABEL_METRIC_REPLICA: Final = "serve_replica"  # Serve's own id of it
LABEL_METRIC_NODE: Final = "ray_node"
# Set by who scrapes pods: whose they are. Two resources may serve the same name.
LABEL_METRIC_NAMESPACE: Final = "namespace"
LABEL_METRIC_RESOURCE: Final = "reasonscale_io_model"  # LABEL_MODEL as Prometheus writes a pod's label

# HTTP headers of the ingress.
HEADER_REQUEST_ID: Final = "x-request-id"
HEADER_BUDGET: Final = "x-reasonscale-thinking-budget"  # tokens applied, `off`, `counted:<tokens>`, `native:<effort>`
HEADER_MOST_OUTPUT: Final = "x-reasonscale-most-output"  # ingress to engine: output tokens after which we end a request
HEADER_CLASS: Final = "x-reasonscale-class"
HEADER_PRESSURE: Final = "x-reasonscale-under-pressure"  # <step>/<steps>: the default budget is shrunk
# Between ingress and engine alone.
HEADER_INGRESS: Final = "x-reasonscale-ingress"  # which ingress sends it
HEADER_UNIQUE_ID: Final = "x-reasonscale-unique-id"  # the request's id with a suffix of its own
HEADER_CREATED: Final = "x-reasonscale-created"  # unix seconds that its events bear
HEADER_KEEP: Final = "x-reasonscale-keep"  # tell the ingress of every token
HEADER_AGAIN: Final = "x-reasonscale-again"  # another engine had it
HEADER_MADE: Final = "x-reasonscale-made"  # the tokens that other engines made of it
HEADER_REPLICA: Final = "x-reasonscale-replica"  # this replica alone is meant
HEADER_SESSION: Final = "x-reasonscale-session"  # what keeps to a replica while that is not overloaded
HEADER_PROMPT_TOKENS: Final = "x-reasonscale-prompt-tokens"  # about so many
HEADER_BY_TOKEN: Final = "x-reasonscale-by-token"  # make those again one by one

# Why a target was chosen (Decision.reason, status.lastDecision.reason, the metric's label).
REASON_HOLD: Final = "Hold"  # the target is right as it is
REASON_COT: Final = "CoTBacklog"  # tokens still to come at the horizon want more decode room
REASON_KV: Final = "KVForecast"  # KV cache full before a replica could be ready
REASON_PREFILL: Final = "PrefillLoad"
REASON_QUEUE: Final = "QueueOverObjective"  # emergency lane: the queue won't drain within the TTFT objective
REASON_PREEMPTION: Final = "Preempting"  # emergency lane
REASON_CALM: Final = "Calm"  # the forecast fits fewer replicas with margin
REASON_BOUNDS: Final = "Bounds"  # outside minReplicas..maxReplicas
REASON_SIGNALS: Final = "SignalsMissing"  # absent or stale: hold
REASON_MANUAL: Final = "Manual"
REASON_EXTERNAL: Final = "External"
REASON_IDLE: Final = "Idle"  # scaled to zero
REASON_WAKE: Final = "Wake"

# What came of spec.accelerator.profile (the condition ProfileLoaded).
PROFILE_LOADED: Final = "Loaded"
PROFILE_DIFFERS: Final = "ProfileDiffers"  # measured with other GPUs a replica, or other max_num_batched_tokens
PROFILE_UNKNOWN: Final = "NoSuchProfile"
PROFILE_UNUSABLE: Final = "BadProfile"  # its file can't be used

CONDITIONS: Final[tuple[str, ...]] = (
    "Accepted", "Ready", "Progressing", "Degraded", "SignalsAvailable", "ScalingActive", "ScalingLimited",
    "UpdateAvailable", "RolloutBlocked", "ProfileLoaded",
)  # fmt: skip


def bin_of(tokens: int) -> int:
    """Return the index in TOKEN_BINS of a request that has generated so many tokens (>= 0)."""
    return bisect_right(TOKEN_BINS, tokens) - 1
