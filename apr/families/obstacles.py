"""What a model does that no GGUF of its family can say to llama.cpp.

Found by comparing, family by family; a contract's `gguf_lacks` names those that several families
share, `gguf_computes` and `gguf_loads` the values of fields that llama.cpp's architecture is made
for, and a family's module may add its own in `gguf_obstacles(architecture)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apr import contracts
from apr.architecture import Architecture


@dataclass(frozen=True)
class Obstacle:
    """One property: which, where it bites and what to do (`text`, a clause).

    `computed` are the fields of `Architecture` that llama.cpp computes instead, so that the
    difference can be measured; None where it would not load the file at all.
    """

    name: str
    text: str
    computed: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return self.text


def shared(architecture: Architecture) -> list[Obstacle]:
    """Those that the contract names in `gguf_lacks`."""
    contract = contracts.load(f"families/{architecture.family}")
    lacks = contract.get("gguf_lacks", [])
    reader = f"llama.cpp's {contract['gguf_architecture']!r}"
    out = []
    window, context = architecture.shortest_window, architecture.max_position_embeddings
    if "sliding_window" in lacks and window:
        out.append(
            Obstacle(
                "sliding_window",
                f"sliding_window is {window} in a context of {context}, and {reader} computes full "
                f"attention: prompts longer than {window} tokens would give other logits; with "
                f"max_position_embeddings of at most {window} the export is exact",
                {"sliding_window": None, "layer_types": None},
            )
        )
    for key, where in (("attention_bias", "attn_output"), ("mlp_bias", "ffn_down")):
        if key in lacks and getattr(architecture, key):
            out.append(
                Obstacle(
                    key,
                    f"{key} is true, and {reader} has no bias on {where}: it would not load the "
                    "file at all",
                )
            )
    if "untied_head" in lacks and not architecture.tie_word_embeddings:
        out.append(
            Obstacle(
                "tie_word_embeddings",
                f"tie_word_embeddings is false, and {reader} always takes the embedding for its "
                "head: it would not load the file at all",
            )
        )
    if "head_dim" in lacks and architecture.q_size != architecture.hidden_size:
        out.append(
            Obstacle(
                "head_dim",
                f"num_heads {architecture.num_heads} times head_dim {architecture.head_dim} is not "
                f"hidden_size {architecture.hidden_size}, and {reader} has no head_dim of its own: "
                "it would not load the file at all",
            )
        )
    for key, taken in contract.get("gguf_computes", {}).items():
        if (value := getattr(architecture, key)) not in taken:
            text = f"{key} is {value!r}, and {reader} computes with {taken[0]!r} whatever the file "
            out.append(Obstacle(key, f"{text}says: every logit would differ", {key: taken[0]}))
    for key, taken in contract.get("gguf_loads", {}).items():
        if (value := getattr(architecture, key)) not in taken:
            text = f"{key} is {value!r}, and {reader} knows only {taken[0]!r}"
            out.append(Obstacle(key, f"{text}: it would not load the file at all"))
    return out
