"""The rules between fields, as the API server checks them (CEL), in the words of `reasonscale validate`.

Each rule hangs on a part of the schema, by its path, and names the field at fault. What needs the model's family, size or
files can't be said in CEL: the operator answers that with the condition Accepted=False.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from reasonscale.api.base import KEY_PATTERN, KEY_SAID, NAME_PATTERN, NAME_SAID
from reasonscale.api.engine_args import ALLOWED, ARGS, COUNT
from reasonscale.api.families import PARSERS
from reasonscale.api.resolve import MAX_BUDGET, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS
from reasonscale.api.scaling_spec import EFFORT_NAMES


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `where`: path of the schema part that is `self`; `field`: the field at fault, from there."""

    where: str
    field: str
    rule: str
    message: str  # what is said; {expressions} in braces are filled in

    def to_json(self) -> dict[str, str]:
        """Return the rule as `x-kubernetes-validations` holds it."""
        out = {"rule": self.rule, "message": self.message}
        values = re.findall(r"\{([^{}]+)\}", self.message)
        if values:
            # By format: the server takes the length of string(number) and of a joined list as boundless, and refuses that.
            text = re.sub(r"\{[^{}]+\}", "%s", self.message.replace("'", "\\'"))
            out |= {
                "messageExpression": f"'{text}'.format([{', '.join(values)}])",
                "message": "contradicts another field",
            }
        # A path into metadata, which the server defines itself, is refused with the whole definition.
        named = bool(self.field) and not self.field.startswith(".metadata")
        return out | ({"fieldPath": self.field} if named else {})


def _names(values: Sequence[str]) -> str:
    return "[" + ", ".join(f"'{v}'" for v in values) + "]"


def _between(where: str, name: str, low: str, high: str, low_said: str, high_said: str) -> Rule:
    value = f"self.{name}"
    return Rule(
        where,
        f".{name}",
        f"duration({value}) >= duration('{low}') && duration({value}) <= duration('{high}')",
        f"was {{{value}}}; must lie between {low_said} and {high_said}",
    )


_CONTEXT: Final = "self.model.maxModelLen"
_BUDGET: Final = "self.reasoning.budget"
_RESERVE: Final = (
    f"(has({_BUDGET}.answerReserve) ? {_BUDGET}.answerReserve : "
    f"({_CONTEXT} / 8 > 2048 ? 2048 : ({_CONTEXT} / 8 < 16 ? 16 : {_CONTEXT} / 8)))"
)
_ARGS: Final = _names(sorted(ALLOWED))
_EFFORTS: Final = _names(EFFORT_NAMES)
_ROOM: Final = f"({_CONTEXT} - {_RESERVE} - 1)"
_FITS: Final = f"!has({_CONTEXT}) || {_RESERVE} >= {_CONTEXT}"  # or it is the reserve that is wrong
_QUARTER: Final = f"({_CONTEXT} / 4)"
_CAP: Final = f"(has({_BUDGET}.max) ? {_BUDGET}.max : ({_ROOM} < {MAX_BUDGET} ? {_ROOM} : {MAX_BUDGET}))"
_DEFAULT: Final = f"(has({_BUDGET}.default) ? {_BUDGET}.default : ({_QUARTER} < {_CAP} ? {_QUARTER} : {_CAP}))"
_RISING: Final = "[" + ", ".join(f"['{a}', '{b}']" for a, b in combinations(EFFORT_NAMES[1:], 2)) + "]"
_SEQS: Final = "('max_num_seqs' in self.args ? int(self.args['max_num_seqs']) : " + f"{MAX_NUM_SEQS})"


def _regex(pattern: str) -> str:
    """Return a pattern as CEL's text. Its braces are escaped: in a message they enclose what is filled in."""
    return json.dumps(pattern).replace("{", "\\u007b").replace("}", "\\u007d")


def _batched(engine: str) -> str:
    return f"('max_num_batched_tokens' in {engine}.args ? int({engine}.args['max_num_batched_tokens']) : {MAX_NUM_BATCHED_TOKENS})"


def _uncounted(engine: str) -> str:
    """Tell whether one of the batch settings is no number: another rule says so."""
    bad = f"k in {engine}.args && !{engine}.args[k].matches({_regex(COUNT.pattern or '')})"
    return f"['max_num_seqs', 'max_num_batched_tokens'].exists(k, {bad})"


def _values() -> Iterator[Rule]:
    """Yield one rule for each kind of engine argument."""
    for values in dict.fromkeys(ARGS.values()):
        if values.pattern is None:
            continue
        those = [n for n, v in ARGS.items() if v == values]
        names = _names(those)
        bad = f"k in self.args && !self.args[k].matches({_regex(values.pattern)})"
        yield Rule(
            "spec.engine", ".args", f"!has(self.args) || !{names}.exists(k, {bad})",
            f"{{{names}.filter(k, {bad}).map(k, k + ' was ' + self.args[k])}}; {' and '.join((', '.join(those[:-1]), those[-1])).removeprefix(' and ')} {values.said}",
        )  # fmt: skip


def _keys(name: str) -> Rule:
    key = "k.lowerAscii()" if name == "annotations" else "k"
    bad = f"!{key}.matches({_regex(KEY_PATTERN)})"
    return Rule(
        "spec.pod", f".{name}", f"!has(self.{name}) || !self.{name}.exists(k, {bad})",
        f"{{self.{name}.filter(k, {bad})}}: not a key; {KEY_SAID}",
    )  # fmt: skip


_SCALING: Final = (
    Rule(
        "spec.scaling", ".minReplicas", "self.minReplicas <= self.maxReplicas",
        "was {self.minReplicas}; it exceeds maxReplicas {self.maxReplicas}",
    ),
    Rule(
        "spec.scaling", ".asleep", "self.asleep < self.maxReplicas",
        "was {self.asleep}; maxReplicas is {self.maxReplicas}, and one serves: it must be smaller",
    ),
    Rule(
        "spec", ".replicas", "!has(self.scaling.mode) || !(self.scaling.mode in ['Manual', 'External']) || has(self.replicas)",
        "is missing; mode {self.scaling.mode} obeys it: say how many",
    ),
    Rule(
        "spec", ".replicas",
        "!has(self.scaling.mode) || self.scaling.mode != 'Manual' || !has(self.replicas) || self.replicas <= self.scaling.maxReplicas",
        "was {self.replicas}; it exceeds scaling.maxReplicas {self.scaling.maxReplicas}",
    ),
    _between("spec.scaling.objectives", "ttft", "1ms", "1h", "0.001s", "3600s"),
    _between("spec.scaling.objectives", "tpot", "1ms", "1m", "0.001s", "60s"),
    _between("spec.scaling.objectives", "maxQueue", "100ms", "1h", "0.1s", "3600s"),
    _between("spec.drain", "max", "1s", "24h", "1s", "24h"),
    _between("spec.resume", "hangAfter", "15s", "1h", "15s", "1h"),
    Rule(
        "spec.scaling", ".startTimeout", "duration(self.startTimeout) >= duration('10s')",
        "was {self.startTimeout}; must be at least 10s: engines take longer to start",
    ),
)  # fmt: skip

_HOLD: Final = "spec.scaling.scaleToZero.hold"
_ZERO: Final = (
    Rule(
        "spec", ".replicas", "!has(self.replicas) || self.replicas > 0",
        "was 0; nobody would wake a model that is told to have none: write 1 or more, or minReplicas: 0 with mode Auto",
    ),
    Rule(
        "spec.scaling", ".minReplicas", "self.minReplicas > 0 || !has(self.mode) || !(self.mode in ['Manual', 'External'])",
        "was 0; mode {self.mode} obeys spec.replicas and can't wake a model: write 1 or more, or mode Auto",
    ),
    Rule(
        "spec.scaling", ".minReplicas", "self.minReplicas > 0 || has(self.scaleToZero)",
        "was 0 without scaleToZero: say when it may sleep (scaleToZero with after: 15m), or write 1 or more",
    ),
    _between("spec.scaling.scaleToZero", "after", "10s", "168h", "10s", "168h"),
    _between(_HOLD, "max", "1s", "24h", "1s", "24h"),
    Rule(
        _HOLD, ".maxBytes",
        "quantity(self.maxBytes).compareTo(quantity('8Mi')) >= 0 && quantity(self.maxBytes).compareTo(quantity('64Gi')) <= 0",
        "was {self.maxBytes}; must lie between 8Mi (two ingresses, bodies of up to 4Mi) and 64Gi",
    ),
)  # fmt: skip

_ENGINE: Final = (
    Rule(
        "spec.engine", ".args", f"!has(self.args) || self.args.all(k, k in {_ARGS})",
        f"{{self.args.filter(k, !(k in {_ARGS}))}}: not an argument that may be set here; `reasonscale validate` says why",
    ),
    *_values(),
    Rule(
        "spec.engine", ".args", f"!has(self.args) || {_uncounted('self')} || {_batched('self')} >= {_SEQS}",
        f"max_num_batched_tokens is {{{_batched('self')}}} and max_num_seqs {{{_SEQS}}}: vLLM needs a token for each sequence",
    ),
    Rule(
        "spec", ".engine.args",
        f"!has({_CONTEXT}) || !has(self.engine.args) || !('enable_chunked_prefill' in self.engine.args) || "
        f"self.engine.args['enable_chunked_prefill'].lowerAscii() != 'false' || {_uncounted('self.engine')} || {_batched('self.engine')} >= {_CONTEXT}",
        f"enable_chunked_prefill was false; vLLM then needs max_num_batched_tokens of at least maxModelLen, {{{_CONTEXT}}}: it is {{{_batched('self.engine')}}}",
    ),
    Rule(
        "spec.parallelism", ".tensor", "self.tensor in [1, 2, 4, 8, 16, 32, 64]",
        "was {self.tensor}; attention heads split by powers of two",
    ),
    Rule(
        "spec.parallelism", ".expert", "self.expert == 1 || self.expert == self.tensor * self.data",
        "was {self.expert}; experts spread over all tensor x data GPUs: write {self.tensor * self.data}, or 1",
    ),
    Rule(
        "spec.parallelism", ".data", "self.data == 1",
        "was {self.data}; data parallel attention is not supported yet: leave it out and spread the model by tensor (and expert, the same number)",
    ),
    Rule(
        "spec.model", ".uri", "!self.uri.startsWith('oci://')",
        "was {self.uri}; oci:// is not supported yet: write hf, s3, gs, pvc or file",
    ),
    Rule("", ".metadata", f"self.metadata.name.matches('{NAME_PATTERN}')", f"was '{{self.metadata.name}}'; {NAME_SAID}"),
    Rule(
        "spec", ".accelerator.fraction",
        "self.accelerator.fraction == 100 || self.parallelism.tensor * self.parallelism.pipeline * self.parallelism.data == 1",
        "was {self.accelerator.fraction}; a replica of {self.parallelism.tensor * self.parallelism.pipeline * self.parallelism.data} "
        "GPUs takes whole ones: leave it out, or set parallelism to 1",
    ),
    Rule(
        "spec", ".engine.args",
        "self.accelerator.fraction == 100 || !has(self.engine.args) || !('gpu_memory_utilization' in self.engine.args)",
        "gpu_memory_utilization follows from spec.accelerator.fraction, {self.accelerator.fraction}: leave one of the two out",
    ),
    Rule(
        "spec.model.cache", "", "has(self.persistentVolumeClaim) != has(self.nodeLocal)",
        "needs exactly one of persistentVolumeClaim and nodeLocal",
    ),
)  # fmt: skip

_REASONING: Final = (
    Rule(
        "spec.reasoning", ".parser", f"self.parser in {_names(('auto', 'none', *sorted(PARSERS)))}",
        "was '{self.parser}'; no parser of vLLM's; write auto, none or a name that vLLM registers",
    ),
    Rule(
        "spec.reasoning", ".mode", "self.mode != 'Never' || self.parser in ['auto', 'none']",
        "was Never, but parser {self.parser} is set: leave one of the two out",
    ),
    Rule(
        "spec", ".reasoning.budget.max", f"{_FITS} || !has({_BUDGET}.max) || {_BUDGET}.max <= {_ROOM}",
        f"was {{{_BUDGET}.max}}; with answerReserve {{{_RESERVE}}} it exceeds maxModelLen {{{_CONTEXT}}}",
    ),
    Rule(
        "spec", ".reasoning.budget.answerReserve", f"!has({_CONTEXT}) || {_RESERVE} < {_CONTEXT}",
        f"was {{{_RESERVE}}}; maxModelLen is {{{_CONTEXT}}}: it must be smaller",
    ),
    Rule(
        "spec.reasoning.budget", ".default", "!has(self.default) || !has(self.max) || self.default <= self.max",
        "was {self.default}; it exceeds budget.max {self.max}",
    ),
    Rule(
        "spec.reasoning", ".underPressure", "!has(self.underPressure) || (self.parser != 'none' && self.mode != 'Never')",
        "was set, but this model does not reason: it has no default budget to shrink; leave it out",
    ),
    Rule(
        "spec.reasoning", ".underPressure.floor",
        "!has(self.underPressure) || !has(self.budget.default) || self.underPressure.floor <= self.budget.default",
        "was {self.underPressure.floor}; it exceeds budget.default {self.budget.default}",
    ),
    Rule(
        "spec", ".reasoning.budget.default",
        f"{_FITS} || has({_BUDGET}.max) || !has({_BUDGET}.default) || {_BUDGET}.default <= {_ROOM}",
        f"was {{{_BUDGET}.default}}; with answerReserve {{{_RESERVE}}} it exceeds maxModelLen {{{_CONTEXT}}}",
    ),
    Rule(
        "spec", ".reasoning.underPressure.floor",
        f"{_FITS} || has({_BUDGET}.default) || !has(self.reasoning.underPressure) || self.reasoning.underPressure.floor <= {_DEFAULT}",
        f"was {{self.reasoning.underPressure.floor}}; it exceeds the default budget, {{{_DEFAULT}}}",
    ),
    Rule(
        "spec", ".reasoning.efforts",
        f"{_FITS} || has({_BUDGET}.max) || !has(self.reasoning.efforts) || "
        f"self.reasoning.efforts.all(k, type(self.reasoning.efforts[k]) == int ? int(self.reasoning.efforts[k]) <= {_ROOM} : true)",
        f"holds more tokens than fit; with answerReserve {{{_RESERVE}}} and maxModelLen {{{_CONTEXT}}} at most {{{_ROOM}}}",
    ),
    Rule(
        "spec.reasoning", ".efforts",
        f"!has(self.efforts) || {_RISING}.all(p, !(p[0] in self.efforts) || !(p[1] in self.efforts) || type(self.efforts[p[0]]) != int "
        "|| type(self.efforts[p[1]]) != int || int(self.efforts[p[0]]) <= int(self.efforts[p[1]]))",
        "a higher effort must not think less than a lower one",
    ),
    Rule(
        "spec.reasoning", ".efforts", f"!has(self.efforts) || self.efforts.all(k, k in {_EFFORTS})",
        f"{{self.efforts.filter(k, !(k in {_EFFORTS}))}}: no effort; there are {', '.join(EFFORT_NAMES)}",
    ),
    Rule(
        "spec.reasoning", ".efforts",
        "!has(self.efforts) || self.efforts.all(k, type(self.efforts[k]) == int ? int(self.efforts[k]) >= 0 : string(self.efforts[k]) == 'native')",
        "holds a value that is neither `native` nor a number of tokens of at least 0",
    ),
    Rule(
        "spec.reasoning", ".efforts",
        "!has(self.efforts) || !has(self.budget.max) || "
        "self.efforts.all(k, type(self.efforts[k]) == int ? int(self.efforts[k]) <= self.budget.max : true)",
        "holds more tokens than budget.max {self.budget.max}",
    ),
    Rule(
        "spec.reasoning", ".efforts",
        "!has(self.efforts) || !('none' in self.efforts) || type(self.efforts['none']) != int || int(self.efforts['none']) == 0",
        "none turns thinking off: write 0",
    ),
)  # fmt: skip

_POD: Final = (
    *(_keys(name) for name in ("labels", "annotations", "nodeSelector")),
    Rule(
        "spec.pod", ".resources", "!has(self.resources) || self.resources.all(k, k in ['requests', 'limits'])",
        "holds what is no field here; there are requests, limits",
    ),
    Rule(
        "spec.pod", ".resources",
        f"!has(self.resources) || !self.resources.exists(p, self.resources[p].exists(k, !k.matches({_regex(KEY_PATTERN)})))",
        f"names what is no resource; {KEY_SAID}",
    ),
    Rule(
        "spec", ".pod.resources",
        "!has(self.pod.resources) || !self.pod.resources.exists(p, self.accelerator.resourceName in self.pod.resources[p])",
        "{self.accelerator.resourceName} follows from spec.parallelism: leave it out",
    ),
)  # fmt: skip

RULES: Final[tuple[Rule, ...]] = (*_SCALING, *_ZERO, *_ENGINE, *_REASONING, *_POD)
