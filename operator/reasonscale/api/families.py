"""Which reasoning parser belongs to which family of models, and whether its chain can be switched off."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

# Parsers that the supported vLLM registers (vllm/reasoning/__init__.py of 0.32).
PARSERS: Final[frozenset[str]] = frozenset(
    [
        "deepseek_r1",
        "deepseek_v3",
        "deepseek_v4",
        "deepseek_v41",
        "poolside_v1",
        "cohere_command3",
        "cohere_command4",
        "ernie45",
        "gemma4",
        "glm45",
        "glm47",
        "ling3",
        "openai_gptoss",
        "granite",
        "granite_thinking_parser",
        "hf",
        "holo2",
        "hunyuan_a13b",
        "hy_v3",
        "hy_v4",
        "kimi_k2",
        "kimi_k3",
        "k2_horizon",
        "mimo",
        "minicpmv",
        "minimax_m2",
        "minimax_m2_append_think",
        "minimax_m3",
        "mistral",
        "nemotron_v3",
        "olmo3",
        "plamo3",
        "muse_glimmer",
        "qwen3",
        "seed_oss",
        "step3",
        "step3p5",
        "inkling",
    ]
)
# What people write instead, from older versions and other servers.
PARSER_ALIASES: Final = {
    "deepseek": "deepseek_r1", "deepseek-r1": "deepseek_r1", "r1": "deepseek_r1", "qwen": "qwen3", "qwq": "deepseek_r1", "gptoss": "openai_gptoss",
    "gpt-oss": "openai_gptoss", "gpt_oss": "openai_gptoss", "glm": "glm45", "kimi": "kimi_k2", "minimax": "minimax_m2", "nemotron": "nemotron_v3",
}  # fmt: skip


class Switch(StrEnum):
    """How a chain is switched off in a request."""

    NEVER = "never"  # the family always thinks
    TEMPLATE = "template"  # chat_template_kwargs of the given name
    NATIVE = "native"  # the model's own effort setting; it thinks a little at least


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models: its parser (None: it does not reason) and how its chain is governed."""

    name: str
    parser: str | None
    switch: Switch = Switch.NEVER
    template_key: str | None = None  # the chat template's variable that switches thinking
    template_default: bool = True  # whether it thinks when nothing is said
    budget: bool = True  # the engine can enforce a budget: the parser has start and end strings
    native_efforts: tuple[str, ...] = ()
    mean_output_tokens: int = 1500  # prior of the length of an output at medium effort


# The first pattern that is found in the lower-cased name decides; what does not reason stands before its relatives.
_FAMILIES: Final[tuple[tuple[str, Family], ...]] = (
    (r"deepseek[-_]?r1[-_]zero|r1[-_]zero", Family("DeepSeek-R1-Zero", "deepseek_r1", mean_output_tokens=4000)),
    (r"deepseek[-_]?r1.*distill", Family("DeepSeek-R1 distill", "deepseek_r1", mean_output_tokens=3000)),
    (r"deepseek[-_]?r1", Family("DeepSeek-R1", "deepseek_r1", mean_output_tokens=1500)),
    (r"deepseek[-_]?v4\.1", Family("DeepSeek-V4.1", "deepseek_v41", Switch.TEMPLATE, "thinking", template_default=False)),
    (r"deepseek[-_]?v4", Family("DeepSeek-V4", "deepseek_v4", Switch.TEMPLATE, "thinking", template_default=False)),
    (r"deepseek[-_]?v3\.[1-9]", Family("DeepSeek-V3.1", "deepseek_v3", Switch.TEMPLATE, "thinking", template_default=False)),
    (r"deepseek[-_]?v[23]", Family("DeepSeek-V3", None, mean_output_tokens=500)),
    (r"qwq", Family("QwQ", "deepseek_r1", mean_output_tokens=4000)),
    (r"qwen3.*(instruct|coder|embedding|rerank|base)", Family("Qwen3 without reasoning", None, mean_output_tokens=500)),
    (r"qwen3.*thinking", Family("Qwen3 thinking", "qwen3", mean_output_tokens=3000)),
    (r"qwen3", Family("Qwen3", "qwen3", Switch.TEMPLATE, "enable_thinking", mean_output_tokens=2000)),
    (r"gpt[-_]?oss", Family("gpt-oss", "openai_gptoss", Switch.NATIVE, budget=False, native_efforts=("low", "medium", "high"), mean_output_tokens=1000)),
    (r"glm[-_]?4\.7|glm[-_]?5", Family("GLM-4.7", "glm47", Switch.TEMPLATE, "enable_thinking")),
    (r"glm[-_]?4\.[56]|glm[-_]?z1", Family("GLM-4.5", "glm45", Switch.TEMPLATE, "enable_thinking")),
    (r"kimi[-_]?k3", Family("Kimi K3", "kimi_k3")),
    (r"kimi[-_]?k2.*thinking|kimi[-_]?k2\.5", Family("Kimi K2 Thinking", "kimi_k2", mean_output_tokens=4000)),
    (r"minimax[-_]?m3", Family("MiniMax-M3", "minimax_m3")),
    (r"minimax[-_]?m[12]", Family("MiniMax-M2", "minimax_m2")),
    (r"nemotron.*(nano|super|ultra|v3|3)", Family("Nemotron", "nemotron_v3", Switch.TEMPLATE, "enable_thinking")),
    (r"magistral", Family("Magistral", "mistral")),
    (r"granite[-_]?(3\.[2-9]|4)", Family("Granite", "granite", Switch.TEMPLATE, "thinking", template_default=False)),
    (r"ernie[-_]?4\.5.*thinking|ernie[-_]?x1", Family("ERNIE", "ernie45")),
    (r"hunyuan[-_]?a13b", Family("Hunyuan-A13B", "hunyuan_a13b", Switch.TEMPLATE, "enable_thinking")),
    (r"seed[-_]?oss", Family("Seed-OSS", "seed_oss")),
    (r"step[-_]?3\.5|step3p5", Family("Step 3.5", "step3p5")),
    (r"step[-_]?3", Family("Step 3", "step3")),
    (r"olmo[-_]?3.*think", Family("OLMo 3 Think", "olmo3")),
    (r"mimo", Family("MiMo", "mimo")),
    (r"phi[-_]?4.*reasoning", Family("Phi-4-reasoning", "deepseek_r1")),
)  # fmt: skip
UNKNOWN: Final = Family("unknown", None)
_BY_PARSER: Final = {family.parser: family for _, family in reversed(_FAMILIES) if family.parser}


def family_of(uri: str, folder: Path | None = None) -> Family:
    """Return the family that a model's URI names; for a folder that is here, what its config.json says counts too."""
    path = uri.split("://", 1)[-1].split("@", 1)[0].lower()
    for pattern, family in _FAMILIES:
        if re.search(pattern, path):
            return family
    if folder is not None:
        try:
            kind = json.loads((folder / "config.json").read_text()).get("model_type", "")
        except (OSError, ValueError):
            kind = ""
        if kind in ("qwen3", "qwen3_moe"):
            return next(f for _, f in _FAMILIES if f.name == "Qwen3")
        if kind == "gpt_oss":
            return next(f for _, f in _FAMILIES if f.name == "gpt-oss")
    return UNKNOWN


def family_by_parser(parser: str) -> Family:
    """Return what is known of a parser that the user named: how its family's chain is governed."""
    if parser == "qwen3":  # also the thinking-only variants have it; the switch is harmless there
        return next(f for _, f in _FAMILIES if f.name == "Qwen3")
    return _BY_PARSER.get(parser, Family(parser, parser))
