"""The decision: `decide(observation, policy, state)` is a pure function of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from reasonscale.api import constants as c
from reasonscale.scaling import emptying, words, zero
from reasonscale.scaling.outlook import Outlook, look
from reasonscale.scaling.state import Rise, State, learn, learn_fleet, learn_wakes, start_time_s
from reasonscale.scaling.types import Decision, Fleet, Freshness, Mode, Numbers, Observation, Policy

ROUNDING = 0.02  # 2.01 replicas are 2
DOWN_MARGIN = 1.1  # what is left must carry a tenth more than the forecast
PREEMPTING_TICKS = 2  # in a row: one alone may be a single long prompt
OVERDUE = 2.0  # times the usual start: such a replica may never come
SETTLE_S = 30.0  # after a rise, until its effect can be judged
STUCK_S = 600.0  # then it is tried again
HELPED = 1.1  # throughput up, or backlog down, by so much


def decide(seen: Observation, policy: Policy, state: State) -> tuple[Decision, State]:
    """Return how many replicas to ask for and why, and the state for the next call.

    A replica that is emptied is one less of those that serve, as if it had been told to go; the need takes it back first.
    """
    mine = emptying.risen(seen)
    policy, least = _in_rollout(mine.fleet, policy), policy.min_replicas
    awake = mine
    if mine.fleet.emptied or mine.fleet.asleep:
        awake = replace(mine, fleet=emptying.serving(mine.fleet), replicas=emptying.awake(mine))
    decision, after = _decide(
        awake, policy, learn_fleet(state, mine.fleet, seen.time), seen.fleet.draining, len(mine.fleet.asleep)
    )
    if seen.freshness is Freshness.FRESH:
        after = learn_wakes(after, seen)
    emptied, asleep, after = emptying.plan(mine, decision.target, policy, after)
    said = [decision.message]
    if policy.min_replicas > least and decision.target == policy.min_replicas:
        said.append(words.what_a_rollout_holds(policy.min_replicas))
    if len(emptied) > len(asleep):
        said.append(words.what_is_emptied(len(emptied) - len(asleep), decision.numbers))
    if asleep:
        said.append(words.what_sleeps(len(asleep)))
    return replace(decision, emptied=emptied, asleep=asleep, message="; ".join(said)), after


def _in_rollout(fleet: Fleet, policy: Policy) -> Policy:
    """Return the policy with what a rollout holds: of two replicas, one of which starts anew, neither goes.

    Else one that slept would take the place of the other, whose start would be taken back; and being an old engine it is
    the next to be stopped, when nobody else serves.
    """
    if fleet.replacing and fleet.ready and fleet.starting_s and fleet.target >= 2:
        return replace(policy, min_replicas=max(policy.min_replicas, min(2, policy.max_replicas)))
    return policy


def _decide(seen: Observation, policy: Policy, state: State, going: int, resting: int) -> tuple[Decision, State]:
    """Return the decision over replicas that serve. `going`: those that were told to go and are still there; `resting`: those that sleep."""
    outlook: Outlook | None = None
    if seen.freshness is Freshness.FRESH:
        state = learn(state, seen, policy)
        outlook = look(seen, policy, state)
    if policy.mode in (Mode.MANUAL, Mode.EXTERNAL):
        return _fixed(seen, policy, state, outlook)
    if zero.at_zero(seen, policy) or (outlook is None and zero.waits_for_any(seen)):
        return _from_zero(seen, policy, state, outlook)
    if outlook is None:
        return _blind(seen, policy, state)
    choice, after = _choose(seen.fleet, policy, state, outlook, resting)
    after = zero.watch(_watch(after, seen, outlook), seen)
    idle_s = zero.may_sleep(after, policy, seen.time)
    if idle_s is not None and choice.target == seen.fleet.target == choice.wanted == 1:
        choice = _Choice(0, 0, c.REASON_IDLE, words.why_sleep(idle_s))
    target = _clamp(choice.target, policy)
    limited = choice.wanted > policy.max_replicas or choice.wanted < policy.min_replicas
    reason, message = choice.reason, choice.message
    if target != choice.target:
        reason = c.REASON_BOUNDS
    if choice.wanted > policy.max_replicas:
        message = f"{message}; {choice.wanted} replicas wanted, maxReplicas is {policy.max_replicas}"
    elif target != choice.target:
        message = f"{message}; bounds {policy.min_replicas} to {policy.max_replicas}"
    free = max(seen.fleet.target, policy.max_replicas - going)  # a replica that drains holds its GPUs until it is gone
    if target > free:
        target, limited = free, True
        message = f"{message}; {going} of maxReplicas {policy.max_replicas} finish their chains first"
    if target < seen.fleet.target and policy.mode is not Mode.RECOMMEND:
        after = replace(after, last_down=seen.time)
    return _decision(seen, policy, target, reason, message, outlook.numbers, limited), after


@dataclass(frozen=True, slots=True)
class _Choice:
    target: int
    wanted: int  # before rates and bounds
    reason: str
    message: str


def _clamp(n: int, policy: Policy) -> int:
    return max(policy.min_replicas, min(policy.max_replicas, n))


def _decision(
    seen: Observation, policy: Policy, target: int, reason: str, message: str, numbers: Numbers, limited: bool
) -> Decision:
    current = seen.fleet.target
    arrow = f"{current} -> {target}: " if target != current else f"{current}: "
    return Decision(
        time=seen.time,
        current=current,
        target=target,
        act=target != current and policy.mode is not Mode.RECOMMEND,
        reason=reason,
        message=arrow + message,
        numbers=numbers,
        limited=limited,
        freshness=seen.freshness,
    )


def _fixed(seen: Observation, policy: Policy, state: State, outlook: Outlook | None) -> tuple[Decision, State]:
    manual = policy.mode is Mode.MANUAL
    asked = seen.fleet.target if policy.manual_replicas is None else policy.manual_replicas
    target = _clamp(asked, policy)
    said = "is absent" if policy.manual_replicas is None else f"is {asked}"
    message = f"mode {policy.mode.value}, spec.replicas {said}"
    if target != asked:
        message += f", bounds {policy.min_replicas} to {policy.max_replicas}"
    reason = c.REASON_MANUAL if manual else c.REASON_EXTERNAL
    numbers = outlook.numbers if outlook else Numbers()
    trend, need = (outlook.trend, outlook.need) if outlook else (state.trend, 0.0)
    after = replace(state, calm_since=None, last_need=need, trend=trend)
    return _decision(seen, policy, target, reason, message, numbers, target != asked), after


def _blind(seen: Observation, policy: Policy, state: State) -> tuple[Decision, State]:
    """Hold: without fresh signals nothing is known, least of all that a replica can be spared."""
    current = seen.fleet.target
    target = _clamp(current, policy)
    if seen.freshness is Freshness.ABSENT or seen.age_s is None:
        message = "no signals from the engines, holding"
    else:
        message = f"the newest signals are {words.seconds(seen.age_s)} old, holding"
    if target != current:
        message += f"; bounds {policy.min_replicas} to {policy.max_replicas}"
    reason = c.REASON_SIGNALS if target == current else c.REASON_BOUNDS
    after = replace(state, calm_since=None, last_need=0.0, preempting_ticks=0, idle_since=None)
    return _decision(seen, policy, target, reason, message, Numbers(), target != current), after


def _from_zero(seen: Observation, policy: Policy, state: State, outlook: Outlook | None) -> tuple[Decision, State]:
    """Wake as many replicas as what is held needs, or sleep on. Never fewer than were asked for: they load."""
    current, start_s = seen.fleet.target, start_time_s(state, policy)
    wanting, known = zero.demand(seen), seen.held_requests is not None
    need = zero.wanted(seen, policy, state)
    target = _clamp(max(current, zero.rounded(need, policy)), policy) if wanting > 0.0 else current
    numbers = outlook.numbers if outlook else Numbers(waiting=wanting, need_queue=need, horizon_s=start_s)
    if wanting > 0.0:
        reason, message = c.REASON_WAKE, words.why_wake(wanting, seen.fleet, start_s)
    else:
        reason = c.REASON_IDLE if known else c.REASON_SIGNALS
        message = words.why_asleep(known)
    trend = outlook.trend if outlook else state.trend
    after = replace(state, calm_since=None, last_need=0.0, preempting_ticks=0, idle_since=None, trend=trend)
    return _decision(seen, policy, target, reason, message, numbers, _up(need) > policy.max_replicas), after


def _up(need: float) -> int:
    return ceil(need - ROUNDING) if need < 1e9 else 10**9


def _wanted(fleet: Fleet, state: State, outlook: Outlook) -> tuple[float, float, str]:
    """Return the replicas wanted by the time that one ordered now serves, those by the time that one that sleeps does, and why."""
    numbers = outlook.numbers
    # A need must be there twice to be believed, so that one noisy tick orders nothing; emergencies don't wait.
    want, soon = min(outlook.need, state.last_need), min(outlook.wake_need, state.last_wake_need)
    reason = _largest(numbers)
    preempting = state.preempting_ticks >= PREEMPTING_TICKS and state.preemptions_per_s > 0.0
    for holds, need, why in (
        (outlook.queue_over_objective, numbers.need_queue, c.REASON_QUEUE),
        (outlook.kv_near_full, numbers.need_kv, c.REASON_KV),
    ):
        if holds:
            soon = max(soon, need)
            if need > want:
                want, reason = need, why
    if preempting and not fleet.starting_s and want <= fleet.ready:
        want, reason = float(fleet.ready + 1), c.REASON_PREEMPTION
        soon = max(soon, want)
    return want, soon, reason


def _choose(fleet: Fleet, policy: Policy, state: State, outlook: Outlook, resting: int) -> tuple[_Choice, State]:
    numbers, current = outlook.numbers, fleet.target
    start_s = start_time_s(state, policy)
    want, soon, reason = _wanted(fleet, state, outlook)
    overdue = sum(1 for age in fleet.starting_s if age > OVERDUE * start_s)
    wanted = max(1, _up(want))
    if wanted > current - overdue:
        wanted += overdue
    later = wanted
    if resting and wanted <= current + resting:
        # Who sleeps is woken for what comes until he would be awake, and for no more.
        wanted = max(1, min(current + resting, _up(soon)))
    least = max(1, _up(DOWN_MARGIN * outlook.need_throughout))
    if policy.asleep:  # one that goes to sleep is had back sooner than one that is stopped
        least = max(1, _up(DOWN_MARGIN * outlook.wake_need_throughout), least - policy.asleep)
    calm = least < current and wanted <= current and outlook.excess <= 0.0 and state.preempting_ticks == 0
    calm = calm and not outlook.queue_over_objective and not outlook.young
    now = numbers_time(state)
    calm_since = (now if state.calm_since is None else state.calm_since) if calm else None
    state = replace(
        state, last_need=outlook.need, last_wake_need=outlook.wake_need, calm_since=calm_since, trend=outlook.trend
    )

    if wanted > current:
        text = words.why_up(reason, numbers, start_s, outlook.drain_s, outlook.ttft_allowed_s)
        if state.stuck_since is not None:
            return _Choice(current, wanted, c.REASON_HOLD, f"{text}; more replicas have not helped so far"), state
        # Those on their way count: else a crowd of five times takes three starts, one after the other.
        there = max(fleet.ready, current)
        most = max(ceil(there * policy.rates.up_max_factor), there + policy.rates.up_max_step)
        return _Choice(max(current, min(wanted, most)), wanted, reason, text), state
    if calm and state.calm_since is not None and _may_go(state, policy, now):
        target = max(least, current - _down_step(policy, current - least))
        text = words.why_down(numbers, outlook.need_throughout, now - state.calm_since)
        return _Choice(target, least, c.REASON_CALM, text), state
    if later > current:
        return _Choice(current, later, c.REASON_HOLD, words.why_let_sleep(later, numbers)), state
    return _Choice(current, wanted, c.REASON_HOLD, words.why_hold(numbers, outlook.need)), state


def numbers_time(state: State) -> float:
    """Return the time of the observation that the state has learnt last."""
    return state.time if state.time is not None else 0.0


def _may_go(state: State, policy: Policy, now: float) -> bool:
    stable = state.calm_since is not None and now - state.calm_since >= policy.rates.down_stable_s
    return stable and (state.last_down is None or now - state.last_down >= policy.rates.down_interval_s)


def _down_step(policy: Policy, spare: int) -> int:
    """Return how many replicas may go at once; where nothing is asked for, a quarter of the spare ones."""
    step = policy.rates.down_max_step
    return max(1, spare // 4) if step is None else step


def _largest(n: Numbers) -> str:
    """Return the reason that asks for most; prefill leads where it is most of the concurrency need."""
    if n.need_kv > n.need_concurrency:
        return c.REASON_KV
    return c.REASON_PREFILL if n.need_prefill > 0.5 * n.need_concurrency else c.REASON_COT


def _watch(state: State, seen: Observation, outlook: Outlook) -> State:
    """Return the state with the guard looked after: two rises that helped nothing end the climb for a while.

    More replicas must make more tokens or leave less to make. Where they do neither, something else is the limit
    (a proxy, a disk, the clients themselves), and a loop that goes on would run to maxReplicas for nothing.
    """
    now, owed, rises, stuck = seen.time, outlook.numbers.owed_tokens, state.rises, state.stuck_since
    ready = seen.fleet.ready
    if rises and ready < rises[-1].ready:
        rises, stuck = (), None
    if len(rises) == 3 and now - rises[-1].time >= SETTLE_S:
        # What was made at the first rise is the work of the replicas before it: the new one had made nothing yet.
        first = rises[1]
        helped = state.tokens_per_s > HELPED * first.tokens_per_s or owed < first.owed_tokens / HELPED
        if helped or first.tokens_per_s <= 0.0 or now - first.time > STUCK_S or outlook.need <= ready:
            rises, stuck = rises[-1:], None
        elif stuck is None:
            stuck = now
    if rises and ready > rises[-1].ready and now - rises[-1].time < SETTLE_S:
        rises = (*rises[:-1], replace(rises[-1], ready=ready))  # one climb of several steps
    elif not rises or ready > rises[-1].ready:
        rises = (*rises, Rise(now, ready, owed, state.tokens_per_s))[-3:]
    if stuck is not None and now - stuck >= STUCK_S:
        rises, stuck = rises[-1:], None
    same = rises is state.rises and stuck == state.stuck_since
    return state if same else replace(state, rises=rises, stuck_since=stuck)
