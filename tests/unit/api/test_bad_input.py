"""Each wrong resource gets one message that names the field, what it was and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reasonscale.api.base import KEY_SAID, SAID
from reasonscale.api.crd import schema
from reasonscale.api.load import load_models, parse
from reasonscale.api.model_spec import URI_PATTERN
from reasonscale.api.quantity import AMOUNT_PATTERN, DURATION_PATTERN, QUANTITY_PATTERN
from reasonscale.api.validate import InvalidResource

R1_32B = "hf://deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
QWEN = "hf://Qwen/Qwen3-32B"


def resource(spec: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    return {
        "apiVersion": "reasonscale.io/v1alpha1",
        "kind": "ReasoningModel",
        "metadata": {"name": "m"},
        "spec": {"model": {"uri": R1_32B}} | (spec or {}),
    } | top


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "another kind": (resource(kind="Pod"), "kind", "was 'Pod'; must be ReasoningModel"),
    "another version": (resource(apiVersion="v1"), "apiVersion", "was 'v1'; must be reasonscale.io/v1alpha1"),
    "no model": (resource() | {"spec": {}}, "spec.model", "is missing"),
    "no name": (resource(metadata={}), "metadata.name", "is missing"),
    "a field misspelt": (resource({"scalng": {}}), "spec.scalng", "is no field; did you mean scaling?"),
    "a nested field misspelt": (
        resource({"scaling": {"maxReplica": 3}}),
        "spec.scaling.maxReplica",
        "is no field; did you mean maxReplicas?",
    ),
    "a duration without a unit": (
        resource({"scaling": {"objectives": {"tpot": 50}}}),
        "spec.scaling.objectives.tpot",
        "50 has no unit: write 50s, 50ms or 50us",
    ),
    "a duration in words": (
        resource({"drain": {"max": "long"}}),
        "spec.drain.max",
        "'long' is no duration: write a number with its unit (us, ms, s, m, h), such as 50ms or 2s",
    ),
    "a drain of no time": (
        resource({"drain": {"max": "0s"}}),
        "spec.drain.max",
        "was 0s; must lie between 1s and 24h",
    ),
    "a hang before a sign of life is due": (
        resource({"resume": {"hangAfter": "5s"}}),
        "spec.resume.hangAfter",
        "was 5s; must lie between 15s and 1h",
    ),
    "a float": (
        resource({"scaling": {"maxReplicas": 2.5}}),
        "spec.scaling.maxReplicas",
        "was 2.5; must be a whole number",
    ),
    "a mode in lower case": (
        resource({"scaling": {"mode": "auto"}}),
        "spec.scaling.mode",
        "was 'auto'; must be one of 'Auto', 'Recommend', 'Manual' or 'External'",
    ),
    "min over max": (
        resource({"scaling": {"minReplicas": 3, "maxReplicas": 2}}),
        "spec.scaling.minReplicas",
        "was 3; it exceeds maxReplicas 2",
    ),
    "manual without a number": (
        resource({"scaling": {"mode": "Manual"}}),
        "spec.replicas",
        "is missing; mode Manual obeys it: say how many",
    ),
    "a budget over the context": (
        resource(
            {
                "model": {"uri": R1_32B, "maxModelLen": 4096},
                "reasoning": {"budget": {"max": 4000, "answerReserve": 512}},
            }
        ),
        "spec.reasoning.budget.max",
        "was 4000; with answerReserve 512 it exceeds maxModelLen 4096: at most 3583, or raise spec.model.maxModelLen",
    ),
    "a reserve over the context": (
        resource({"model": {"uri": R1_32B, "maxModelLen": 4096}, "reasoning": {"budget": {"answerReserve": 5000}}}),
        "spec.reasoning.budget.answerReserve",
        "was 5000; maxModelLen is 4096: it must be smaller",
    ),
    "a default over the maximum": (
        resource({"reasoning": {"budget": {"default": 9000, "max": 8000}}}),
        "spec.reasoning.budget.default",
        "was 9000; it exceeds budget.max 8000",
    ),
    "an effort over the maximum": (
        resource({"reasoning": {"budget": {"max": 8000}, "efforts": {"high": 9000}}}),
        "spec.reasoning.efforts.high",
        "was 9000; it exceeds budget.max 8000",
    ),
    "an effort misspelt": (
        resource({"reasoning": {"efforts": {"hihg": 9}}}),
        "spec.reasoning.efforts.hihg",
        "is no effort; did you mean high?",
    ),
    "a native effort of a family without one": (
        resource({"reasoning": {"efforts": {"high": "native"}}}),
        "spec.reasoning.efforts.high",
        "was native, but DeepSeek-R1 distill has no effort setting of its own: write a number of tokens",
    ),
    "a parser by an old name": (
        resource({"reasoning": {"parser": "deepseek"}}),
        "spec.reasoning.parser",
        "was 'deepseek'; no parser of vLLM's: write deepseek_r1",
    ),
    "R1 told never to think": (
        resource({"reasoning": {"mode": "Never"}}),
        "spec.reasoning.mode",
        "was Never, but this family's chain can't be switched off: leave mode out",
    ),
    "an argument as on a command line": (
        resource({"engine": {"args": {"--max-num-seqs": "8"}}}),
        "spec.engine.args.--max-num-seqs",
        "'--max-num-seqs' is a command line's: write max_num_seqs",
    ),
    "an argument that a field says": (
        resource({"engine": {"args": {"tensor_parallel_size": "2"}}}),
        "spec.engine.args.tensor_parallel_size",
        "tensor_parallel_size is said by spec.parallelism.tensor: say it there",
    ),
    "an argument that executes code": (
        resource({"engine": {"args": {"trust_remote_code": "true"}}}),
        "spec.engine.args.trust_remote_code",
        "trust_remote_code is not allowed: it executes code that comes with the weights",
    ),
    "an argument that opens ports": (
        resource({"engine": {"args": {"port": "1"}}}),
        "spec.engine.args.port",
        "port is not allowed: it opens ports",
    ),
    "an argument nobody knows": (
        resource({"engine": {"args": {"max_num_seq": "8"}}}),
        "spec.engine.args.max_num_seq",
        "max_num_seq is not on the list of allowed engine arguments; did you mean max_num_seqs?",
    ),
    "an argument of the wrong kind": (
        resource({"engine": {"args": {"max_num_seqs": "many"}}}),
        "spec.engine.args.max_num_seqs",
        "was 'many'; must be a whole number of at least 1",
    ),
    "weights that don't fit": (
        resource({"accelerator": {"product": "NVIDIA-H100-80GB-HBM3"}}),
        "spec.parallelism",
        "weights 66 GB do not fit 1 x 80 GB with room for KV: set parallelism.tensor: 2",
    ),
    "a part of several GPUs": (
        resource({"accelerator": {"fraction": 30}, "parallelism": {"tensor": 2}}),
        "spec.accelerator.fraction",
        "was 30; a replica of 2 GPUs takes whole ones: leave it out, or set parallelism to 1",
    ),
    "a part that is no percentage": (
        resource({"accelerator": {"fraction": 2}}),
        "spec.accelerator.fraction",
        "was 2; must be at least 5",
    ),
    "a share of memory said twice": (
        resource({"accelerator": {"fraction": 30}, "engine": {"args": {"gpu_memory_utilization": "0.3"}}}),
        "spec.engine.args.gpu_memory_utilization",
        "follows from spec.accelerator.fraction, 30: leave one of the two out",
    ),
    "an odd split": (
        resource({"parallelism": {"tensor": 3}}),
        "spec.parallelism.tensor",
        "was 3; attention heads split by powers of two: write 2 or 4",
    ),
    "experts over too few": (
        resource({"parallelism": {"tensor": 8, "expert": 4}}),
        "spec.parallelism.expert",
        "was 4; experts spread over all tensor x data GPUs: write 8, or 1",
    ),
    "data parallel": (
        resource({"parallelism": {"data": 2}}),
        "spec.parallelism.data",
        "was 2; data parallel attention is not supported yet: leave it out and spread the model by tensor (and expert, the same number)",
    ),
    "weights in an image": (
        resource({"model": {"uri": "oci://registry/r1:1"}}),
        "spec.model.uri",
        "was oci://registry/r1:1; oci:// is not supported yet: write hf, s3, gs, pvc or file",
    ),
    "a name that KubeRay refuses": (
        resource() | {"metadata": {"name": "1" + "x" * 47}},
        "metadata.name",
        f"was '1{'x' * 47}'; KubeRay takes at most 47 of a-z, 0-9 and -, beginning with a letter and not ending with -",
    ),
    "a variable that is ours": (
        resource({"pod": {"env": [{"name": "PYTHONPATH", "value": "/evil"}]}}),
        "spec.pod.env[0].name",
        "was PYTHONPATH; reasonscale or KubeRay sets it: leave it out",
    ),
    "a token said twice": (
        resource(
            {
                "model": {"uri": "hf://a/b", "tokenSecretRef": {"name": "s", "key": "k"}},
                "pod": {"env": [{"name": "HF_TOKEN", "value": "x"}]},
            }
        ),
        "spec.pod.env[0].name",
        "was HF_TOKEN; spec.model.tokenSecretRef says it: leave one of the two out",
    ),
    "a variable there twice": (
        resource({"pod": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}),
        "spec.pod.env[1].name",
        "was A; it is there twice: names must differ",
    ),
    "a volume of our name": (
        resource({"pod": {"volumes": [{"name": "reasonscale-code", "emptyDir": {}}]}}),
        "spec.pod.volumes[0].name",
        "was reasonscale-code; names that begin with reasonscale- are reasonscale's: choose another",
    ),
    "a mount over our code": (
        resource(
            {
                "pod": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/reasonscale/"}],
                }
            }
        ),
        "spec.pod.volumeMounts[0].mountPath",
        "was /reasonscale; that is reasonscale's own code: choose another",
    ),
    "a mount of nothing": (
        resource({"pod": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}}),
        "spec.pod.volumeMounts[0].name",
        "was v; spec.pod.volumes has no such volume",
    ),
    "a label that KubeRay selects by": (
        resource({"pod": {"labels": {"ray.io/cluster": "other"}}}),
        "spec.pod.labels.ray.io/cluster",
        "is set by reasonscale or KubeRay, which select by it: leave it out",
    ),
    "GPUs as a resource": (
        resource({"pod": {"resources": {"limits": {"nvidia.com/gpu": "4"}}}}),
        "spec.pod.resources.limits.nvidia.com/gpu",
        "was 4; it follows from spec.parallelism: leave it out",
    ),
    "two caches": (
        resource(
            {
                "model": {
                    "uri": R1_32B,
                    "cache": {"persistentVolumeClaim": {"claimName": "a"}, "nodeLocal": {"path": "/b"}},
                }
            }
        ),
        "spec.model.cache",
        "needs exactly one of persistentVolumeClaim and nodeLocal",
    ),
    "a class twice": (
        resource({"classes": [{"name": "a", "match": {"header": "x", "values": ["1"]}}] * 2}),
        "spec.classes",
        "'a' is there twice: names must differ",
    ),
    "zero without saying when": (
        resource({"scaling": {"minReplicas": 0}}),
        "spec.scaling.minReplicas",
        "was 0 without scaleToZero: say when it may sleep (scaleToZero with after: 15m), or write 1 or more",
    ),
    "zero in a mode that can't wake": (
        resource({"replicas": 1, "scaling": {"minReplicas": 0, "scaleToZero": {}, "mode": "Manual"}}),
        "spec.scaling.minReplicas",
        "was 0; mode Manual obeys spec.replicas and can't wake a model: write 1 or more, or mode Auto",
    ),
    "told to have no replica": (
        resource({"replicas": 0, "scaling": {"mode": "External"}}),
        "spec.replicas",
        "was 0; nobody would wake a model that is told to have none: write 1 or more, or minReplicas: 0 with mode Auto",
    ),
    "asleep in a blink": (
        resource({"scaling": {"minReplicas": 0, "scaleToZero": {"after": "2s"}}}),
        "spec.scaling.scaleToZero.after",
        "was 2s; must lie between 10s and 168h",
    ),
    "held for days": (
        resource({"scaling": {"minReplicas": 0, "scaleToZero": {"hold": {"max": "48h"}}}}),
        "spec.scaling.scaleToZero.hold.max",
        "was 48h; must lie between 1s and 24h",
    ),
    "room for no request": (
        resource({"scaling": {"minReplicas": 0, "scaleToZero": {"hold": {"maxBytes": "1Mi"}}}}),
        "spec.scaling.scaleToZero.hold.maxBytes",
        "was 1Mi; must lie between 8Mi (two ingresses, bodies of up to 4Mi) and 64Gi",
    ),
    "nobody may be held": (
        resource({"scaling": {"minReplicas": 0, "scaleToZero": {"hold": {"maxRequests": 0}}}}),
        "spec.scaling.scaleToZero.hold.maxRequests",
        "was 0; must be at least 1",
    ),
    "shrinking what has no budget": (
        resource({"reasoning": {"underPressure": {}}, "model": {"uri": "hf://openai/gpt-oss-120b"}}),
        "spec.reasoning.underPressure",
        "was set, but this model takes efforts of its own: it has no default budget to shrink; leave it out",
    ),
    "a switch for a number": (
        resource({"scaling": {"maxReplicas": True}}),
        "spec.scaling.maxReplicas",
        "was True; must be a whole number",
    ),
    "a text for a number": (
        resource({"scaling": {"maxReplicas": "4"}}),
        "spec.scaling.maxReplicas",
        "was '4'; must be a whole number",
    ),
    "more than there may be": (
        resource({"scaling": {"maxReplicas": 100000}}),
        "spec.scaling.maxReplicas",
        "was 100000; must be at most 1000",
    ),
    "a share above the whole": (
        resource({"engine": {"args": {"gpu_memory_utilization": "7"}}}),
        "spec.engine.args.gpu_memory_utilization",
        "was '7'; must lie above 0 and be at most 1",
    ),
    "no share at all": (
        resource({"engine": {"args": {"gpu_memory_utilization": "0.0"}}}),
        "spec.engine.args.gpu_memory_utilization",
        "was '0.0'; must lie above 0 and be at most 1",
    ),
    "a type that vLLM has not": (
        resource({"engine": {"args": {"dtype": "banana"}}}),
        "spec.engine.args.dtype",
        "was 'banana'; must be one of auto, half, float16, bfloat16, float, float32",
    ),
    "a switch that is none": (
        resource({"engine": {"args": {"enforce_eager": "maybe"}}}),
        "spec.engine.args.enforce_eager",
        "was 'maybe'; must be true or false",
    ),
    "an argument without a value": (
        resource({"engine": {"args": {"seed": None}}}),
        "spec.engine.args.seed",
        "was None; must be text, a number, or true or false",
    ),
    "an argument that holds a map": (
        resource({"engine": {"args": {"speculative_config": "{}"}}}),
        "spec.engine.args.speculative_config",
        "speculative_config is not allowed: arguments that hold a map or a list are not supported yet",
    ),
    "an argument of an older vLLM": (
        resource({"engine": {"args": {"swap_space": "4"}}}),
        "spec.engine.args.swap_space",
        "swap_space is not allowed: vLLM has it no longer",
    ),
    "fewer tokens than sequences": (
        resource({"engine": {"args": {"max_num_batched_tokens": "128"}}}),
        "spec.engine.args.max_num_batched_tokens",
        "max_num_batched_tokens is 128 and max_num_seqs 256: vLLM needs a token for each sequence",
    ),
    "more sequences than tokens": (
        resource({"engine": {"args": {"max_num_seqs": "4096"}}}),
        "spec.engine.args.max_num_seqs",
        "max_num_batched_tokens is 2048 and max_num_seqs 4096: vLLM needs a token for each sequence",
    ),
    "prompts whole, of which none is read at once": (
        resource(
            {"model": {"uri": R1_32B, "maxModelLen": 4096}, "engine": {"args": {"enable_chunked_prefill": "false"}}}
        ),
        "spec.engine.args.enable_chunked_prefill",
        "was false; vLLM then needs max_num_batched_tokens of at least maxModelLen, 4096: it is 2048",
    ),
    "an amount that is none": (
        resource({"pod": {"resources": {"limits": {"memory": "lots"}}}}),
        "spec.pod.resources.limits.memory",
        "was 'lots'; must be a quantity of at least 0, such as 500m, 4 or 64Gi",
    ),
    "an amount with a point": (
        resource({"pod": {"resources": {"limits": {"cpu": 1.5}}}}),
        "spec.pod.resources.limits.cpu",
        'was 1.5; write it as text: "1.5"',
    ),
    "less than nothing": (
        resource({"pod": {"resources": {"limits": {"cpu": -1}}}}),
        "spec.pod.resources.limits.cpu",
        "was -1; must be a quantity of at least 0, such as 500m, 4 or 64Gi",
    ),
    "resources of another kind": (
        resource({"pod": {"resources": {"limit": {"cpu": 1}}}}),
        "spec.pod.resources.limit",
        "is no field here; there are requests, limits",
    ),
    "a limit below what is asked for": (
        resource({"pod": {"resources": {"requests": {"memory": "2Ti"}, "limits": {"memory": "512Gi"}}}}),
        "spec.pod.resources.limits.memory",
        "was 512Gi; the pod requests 2Ti: write a limit of at least that, or a smaller requests.memory",
    ),
    "a limit below what an engine asks for by itself": (
        resource({"pod": {"resources": {"limits": {"cpu": "500m"}}}}),
        "spec.pod.resources.limits.cpu",
        "was 500m; the pod requests 1: write a limit of at least that, or a smaller requests.cpu",
    ),
    "a variable's number": (
        resource({"pod": {"env": [{"name": "A", "value": 1}]}}),
        "spec.pod.env[0].value",
        "was 1; must be text: put it in quotes",
    ),
    "a label's key": (
        resource({"pod": {"labels": {"bad key!": "c"}}}),
        "spec.pod.labels.bad key!",
        f"was 'bad key!'; {KEY_SAID}",
    ),
    "a label's value": (
        resource({"pod": {"labels": {"a": "b c"}}}),
        "spec.pod.labels.a",
        "was 'b c'; a label's value is at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and ending with a letter or digit",
    ),
    "an annotation's key": (
        resource({"pod": {"annotations": {"a/b/c": "d"}}}),
        "spec.pod.annotations.a/b/c",
        f"was 'a/b/c'; {KEY_SAID}",
    ),
    "a node's label": (
        resource({"pod": {"nodeSelector": {"-zone": "d"}}}),
        "spec.pod.nodeSelector.-zone",
        f"was '-zone'; {KEY_SAID}",
    ),
    "a secret's name": (
        resource({"pod": {"imagePullSecrets": [{"name": "My_Secret"}]}}),
        "spec.pod.imagePullSecrets[0].name",
        "was 'My_Secret'; Kubernetes names objects with a-z, 0-9, - and ., beginning and ending with a letter or digit",
    ),
    "a model by its hub's name alone": (
        resource({"model": {"uri": "deepseek-ai/DeepSeek-R1"}}),
        "spec.model.uri",
        "was 'deepseek-ai/DeepSeek-R1'; write hf://deepseek-ai/DeepSeek-R1",
    ),
    "a model by its page": (
        resource({"model": {"uri": "https://huggingface.co/Qwen/Qwen3-32B"}}),
        "spec.model.uri",
        "was 'https://huggingface.co/Qwen/Qwen3-32B'; write hf://Qwen/Qwen3-32B",
    ),
    "a model by its folder": (
        resource({"model": {"uri": "./models/r1"}}),
        "spec.model.uri",
        "was './models/r1'; write file://models/r1",
    ),
    "a model from elsewhere": (
        resource({"model": {"uri": "ftp://a/b"}}),
        "spec.model.uri",
        "was 'ftp://a/b'; must begin with hf://, s3://, gs://, pvc:// or file://, as in hf://deepseek-ai/DeepSeek-R1",
    ),
    "a name in capitals": (
        resource() | {"metadata": {"name": "My_Model"}},
        "metadata.name",
        "was 'My_Model'; KubeRay takes at most 47 of a-z, 0-9 and -, beginning with a letter and not ending with -: write my-model",
    ),
    "a duration of too many digits": (
        resource({"drain": {"max": "9" * 29 + "h"}}),
        "spec.drain.max",
        "has 30 characters; must have at most 20",
    ),
    "an effort that is no number": (
        resource({"reasoning": {"efforts": {"low": "nativ"}}}),
        "spec.reasoning.efforts.low",
        "was 'nativ'; must be a whole number of tokens, or native",
    ),
    "an effort's number as text": (
        resource({"reasoning": {"efforts": {"low": "5"}}}),
        "spec.reasoning.efforts.low",
        "was '5'; must be a whole number of tokens, or native",
    ),
    "a higher effort that thinks less": (
        resource({"reasoning": {"efforts": {"low": 9000, "high": 100}}}),
        "spec.reasoning.efforts.high",
        "was 100; low has 9000: a higher effort must not think less",
    ),
    "an effort over the context": (
        resource({"model": {"uri": R1_32B, "maxModelLen": 4096}, "reasoning": {"efforts": {"high": 4000}}}),
        "spec.reasoning.efforts.high",
        "was 4000; with answerReserve 512 it exceeds maxModelLen 4096: at most 3583",
    ),
    "a budget that leaves a prompt no token": (
        resource(
            {
                "model": {"uri": R1_32B, "maxModelLen": 4096},
                "reasoning": {"budget": {"max": 3584, "answerReserve": 512}},
            }
        ),
        "spec.reasoning.budget.max",
        "was 3584; with answerReserve 512 it exceeds maxModelLen 4096: at most 3583, or raise spec.model.maxModelLen",
    ),
    "a reserve over the context, beside a budget that would fit": (
        resource(
            {
                "model": {"uri": R1_32B, "maxModelLen": 32768},
                "reasoning": {"budget": {"max": 100, "answerReserve": 999999}},
            }
        ),
        "spec.reasoning.budget.answerReserve",
        "was 999999; maxModelLen is 32768: it must be smaller",
    ),
    "a floor above the default that is chosen": (
        resource({"model": {"uri": QWEN, "maxModelLen": 65536}, "reasoning": {"underPressure": {"floor": 999999}}}),
        "spec.reasoning.underPressure.floor",
        "was 999999; it exceeds the default budget, 16384",
    ),
    "a floor above the default that is the most": (
        resource(
            {
                "model": {"uri": QWEN, "maxModelLen": 65536},
                "reasoning": {"budget": {"max": 4096}, "underPressure": {"floor": 8192}},
            }
        ),
        "spec.reasoning.underPressure.floor",
        "was 8192; it exceeds the default budget, 4096",
    ),
    "a floor above the default of a context nobody wrote": (
        resource({"reasoning": {"underPressure": {"floor": 999999}}}),
        "spec.reasoning.underPressure.floor",
        "was 999999; it exceeds the default budget, 16384",
    ),
    "a floor above the default that shrinks to it": (
        resource({"reasoning": {"budget": {"default": 512}, "underPressure": {"floor": 1024}}}),
        "spec.reasoning.underPressure.floor",
        "was 1024; it exceeds budget.default 512",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_resource_is_refused_in_words(name: str) -> None:
    document, field, message = CASES[name]
    with pytest.raises(InvalidResource) as caught:
        parse(document)
    assert [(p.field, p.message) for p in caught.value.problems] == [(field, message)]


def test_every_problem_of_a_resource_is_told_at_once() -> None:
    with pytest.raises(InvalidResource) as caught:
        parse(resource({"scaling": {"minReplicas": 3, "maxReplicas": 2}, "parallelism": {"tensor": 3}}))
    assert {p.field for p in caught.value.problems} == {"spec.scaling.minReplicas", "spec.parallelism.tensor"}


def test_a_typo_is_told_beside_a_wrong_value() -> None:
    with pytest.raises(InvalidResource) as caught:
        parse(resource({"reasoning": {"efforts": {"low": "nativ", "hihg": 3}}}))
    assert [str(p) for p in caught.value.problems] == [
        "spec.reasoning.efforts.low: was 'nativ'; must be a whole number of tokens, or native",
        "spec.reasoning.efforts.hihg: is no effort; did you mean high?",
    ]


def _patterns(node: Any) -> set[str]:
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {node["pattern"]} if isinstance(node, dict) and isinstance(node.get("pattern"), str) else set()
    return own.union(*map(_patterns, parts))


def test_no_text_is_answered_with_a_pattern() -> None:
    ours = {URI_PATTERN, DURATION_PATTERN, QUANTITY_PATTERN, AMOUNT_PATTERN}  # these have checks of their own
    assert _patterns(schema()["properties"]["spec"]) - ours <= set(SAID)


@pytest.mark.parametrize("limit", ["1", 1, "1500m", "2e3", "1.", ".5Ki", "64Gi", "1E"])
def test_kubernetes_quantities_are_taken(limit: str | int) -> None:
    parse(resource({"pod": {"resources": {"limits": {"cpu": limit}}}}))


TWICE = """\
apiVersion: reasonscale.io/v1alpha1
kind: ReasoningModel
metadata: {name: m}
spec:
  model: {uri: "hf://a/b"}
  scaling: {maxReplicas: 2}
  scaling: {maxReplicas: 3}
  pod:
    env: [{name: A, value: b, name: C}]
"""


def test_a_key_that_stands_twice_is_refused_where_yaml_lets_the_last_win(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(TWICE)
    with pytest.raises(InvalidResource) as caught:
        load_models(file)
    assert [str(p) for p in caught.value.problems] == [
        "spec.scaling: stands twice (lines 6, 7): keep one",
        "spec.pod.env[0].name: stands twice (line 9): keep one",
    ]


def test_what_an_anchor_repeats_stands_once(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(
        "apiVersion: reasonscale.io/v1alpha1\nkind: ReasoningModel\nmetadata: {name: m}\n"
        "spec:\n  model: {uri: 'hf://a/b'}\n  pod: {labels: &a {x: y}, annotations: {<<: *a, x: z}}\n"
    )
    [model] = load_models(file)
    assert (model.spec.pod.labels, model.spec.pod.annotations) == ({"x": "y"}, {"x": "z"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: it must hold a ReasoningModel"),
        ("a: [", "is no YAML in line 1"),
        ("- 1", "is no resource but list"),
        ("a: " + "9" * 5000, "holds a value that can't be: Exceeds the limit"),
        ("a: " + "[" * 3000 + "]" * 3000, "lists or maps are nested too deeply"),
        ("a: 2026-99-99", "holds a value that can't be: month must be in 1..12"),
    ],
)
def test_a_file_that_holds_no_resource_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    with pytest.raises(InvalidResource, match=message):
        load_models(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidResource, match="there is no such file"):
        load_models(tmp_path / "none.yaml")


def test_a_local_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidResource, match=r"there is no model in .*nowhere \(no config.json\)"):
        parse(resource({"model": {"uri": "file://nowhere"}}), tmp_path)
