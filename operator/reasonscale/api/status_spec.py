"""What the operator writes under `status`: what runs, why, and what was chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from reasonscale.api.base import Part, Text

Word = Annotated[str, StringConstraints(max_length=256)]
Time = Annotated[str, StringConstraints(max_length=40), Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0)]


class Condition(Part):
    """A condition, of the shape that Kubernetes' own have."""

    type: Word = Field(description="Accepted, Ready, Progressing, Degraded, SignalsAvailable, ...")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Word = Field(description="A constant word for the cause.")
    message: Annotated[str, StringConstraints(max_length=4096)] = Field(default="", description="Cause and remedy.")
    last_transition_time: Time = Field(description="When `status` last changed.")
    observed_generation: Count | None = Field(default=None, description="The generation that it speaks of.")


class ReplicaCounts(Part):
    """Replicas by what they do."""

    desired: Count | None = Field(default=None, description="As decided.")
    ready: Count | None = Field(default=None, description="Serving.")
    starting: Count | None = Field(default=None, description="Ordered, and not serving yet.")
    draining: Count | None = Field(default=None, description="Finishing their chains before they go.")
    asleep: Count | None = Field(default=None, description="Kept with a sleeping engine.")


class Demand(Part):
    """The work as of the last decision."""

    queued_tokens: Count | None = Field(default=None, description="Tokens that waiting requests are expected to make.")
    in_flight_tokens: Count | None = Field(default=None, description="Tokens that running requests are still to make.")
    kv_usage_percent: Count | None = Field(default=None, description="KV cache in use over all replicas.")
    held_requests: Count | None = Field(
        default=None, description="Requests that wait for a replica to start; absent: the model never sleeps."
    )
    kv_full_in: Word | None = Field(default=None, description="Time until the KV cache is full; absent: not in sight.")


class DrainStatus(Part):
    """What draining replicas still owe."""

    tokens_owed: Count | None = Field(default=None, description="Tokens that their chains are expected to make yet.")
    expected: Word | None = Field(default=None, description="How long that takes.")


class EmptiedReplica(Part):
    """A replica that routers send nothing to, so that it can go."""

    replica: Word = Field(description="Its id at Ray Serve.")
    since: Time = Field(description="When it was first seen to be emptied: it is for `drain.max` at most.")


class AsleepStatus(Part):
    """What sleeping replicas hold."""

    gpus: Count | None = Field(default=None, description="GPUs, or parts of one, that stay theirs.")
    host_memory: Word | None = Field(
        default=None,
        description="Host memory that they hold at most, twice their weights; absent: nobody knows how large those are.",
    )


class DecisionStatus(Part):
    """One decision."""

    from_: Count = Field(alias="from", description="Replicas before.")
    to: Count = Field(description="Replicas wanted.")
    reason: Word = Field(description="A constant word for the cause.")
    message: Text = Field(description="The numbers that made it, in a sentence.")
    time: Time = Field(description="When it was made.")


class Status(Part):
    """What the operator saw, chose and did."""

    observed_generation: Count | None = Field(default=None, description="The generation that was last acted on.")
    conditions: Annotated[list[Condition], Field(max_length=16)] | None = Field(
        default=None, description="What holds, with cause and remedy."
    )
    replicas: ReplicaCounts | None = Field(default=None, description="Replicas by what they do.")
    demand: Demand | None = Field(default=None, description="The work as of the last decision.")
    drain: DrainStatus | None = Field(default=None, description="What draining replicas still owe.")
    emptied: Annotated[list[EmptiedReplica], Field(max_length=1000)] | None = Field(
        default=None, description="Replicas that routers send nothing to, those that sleep among them."
    )
    asleep: AsleepStatus | None = Field(default=None, description="What sleeping replicas hold.")
    last_decision: DecisionStatus | None = Field(default=None, description="The last decision that changed something.")
    history: Annotated[list[DecisionStatus], Field(max_length=10)] | None = Field(
        default=None, description="The last ten decisions that changed something, newest first."
    )
    resolved: dict[str, object] | None = Field(default=None, description="Everything the system chose.")
    render_revision: Word | None = Field(default=None, description="The rendering that runs.")
    endpoint: Text | None = Field(default=None, description="Where the OpenAI API answers within the cluster.")
    selector: Text | None = Field(
        default=None, description="Label selector of the pods with engines, for HPA and KEDA."
    )
