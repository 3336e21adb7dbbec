"""The proof of an export or import: opens what was written again, and asks foreign readers.

No other program reads `.apr`: for an import the foreign ones load the source, and their answers are
held against our engine on the written file.

Written as a list of named questions, so that the report can say of each what it found, or why it
could not be asked. Nothing here writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr import families
from apr.device import available_memory
from apr.errors import AprError
from apr.export import comparison, peers, samples
from apr.export.report import Check, Outcome, failed, passed, skipped, timed
from apr.formats import open_model
from apr.formats.gguf_writer import tokens_differ
from apr.formats.opened import OpenedModel

Float32 = npt.NDArray[np.float32]
_NO_PEERS = "left out by --no-peers"


@dataclass(frozen=True)
class Proof:
    """One written output, `target`, against its source; `ask_peers` lets other programs load it."""

    source: OpenedModel
    target: Path
    format: str
    ask_peers: bool = True
    threads: int | None = None

    @cached_property
    def written(self) -> OpenedModel:
        """The output, opened again."""
        return open_model(self.target)

    @cached_property
    def texts(self) -> list[str]:
        """What tokenizers are compared on."""
        return samples.proof_texts()

    @cached_property
    def main_type(self) -> str:
        """The storage type that most of the output's matrices have."""
        return _main_type(self.written)

    @cached_property
    def shown_to_peers(self) -> OpenedModel:
        """What other programs load: the output, or for an `.apr` file its source."""
        return self.source if self.format == "apr" else self.written

    @cached_property
    def changed(self) -> bool:
        """Whether a tensor has values that its source has not: it was rounded to another type."""
        return any(
            tensor.dtype != self.written.tensors[name].dtype
            and not _widened(tensor.dtype.name, self.written.tensors[name].dtype.name)
            for name, tensor in self.source.tensors.items()
        )

    @cached_property
    def prompt(self) -> list[int]:
        """Token ids whose logits are compared."""
        rules = comparison.rules()
        architecture = self.source.architecture
        room = architecture.max_position_embeddings - rules["greedy_tokens"]
        ids = self.source.require_tokenizer().encode(samples.prompt_text())
        wanted = int(rules["prompt_tokens"])
        window = architecture.shortest_window
        if window is not None and window < rules["prompt_tokens_for_window"]:
            # Longer than every window, by all that is compared: within it nothing would show
            # whether anybody computes it.
            wanted += window
            ids = ids * -(-wanted // max(1, len(ids)))
        return ids[: max(1, min(wanted, room))]

    @property
    def compared(self) -> int:
        """How many positions' logits are compared: the last ones of a long prompt."""
        return min(len(self.prompt), int(comparison.rules()["prompt_tokens"]))

    @property
    def greedy(self) -> int:
        """How many tokens a peer may continue the prompt by, within the context."""
        room = self.source.architecture.max_position_embeddings - len(self.prompt)
        return max(0, min(int(comparison.rules()["greedy_tokens"]), room))

    @cached_property
    def precision(self) -> str | None:
        """What another program can hold: the model in float32, else in bfloat16, or None."""
        count = sum(t.num_elements for t in self.source.tensors.values())
        free = available_memory()
        for name, size in (("float32", 4), ("bfloat16", 2)):
            if free is None or count * size * 1.25 < free:
                return name
        return None

    @cached_property
    def source_logits(self) -> Float32:
        """Our engine on the source, at the end of the prompt, `[compared, vocab]`."""
        return self.logits_of(self.source)

    @cached_property
    def written_logits(self) -> Float32:
        """Our engine on the output, at the end of the prompt, `[compared, vocab]`."""
        return self.logits_of(self.written)

    def logits_of(self, model: OpenedModel) -> Float32:
        """Our engine on any model, at the end of this proof's prompt, `[compared, vocab]`."""
        from apr.engine.streamed import streamed_logits

        return streamed_logits(model, self.prompt, last=self.compared, threads=self.threads)

    def run(self) -> Iterator[Check]:
        """Ask everything, in the order in which an answer is cheap; stops after a failed tensor."""
        questions: list[tuple[str, Callable[[], Outcome]]] = [
            ("tensors", lambda: comparison.tensors(self.source, self.written)),
            ("foreign reader", self.foreign),
            ("metadata", lambda: comparison.metadata(self.source, self.written)),
            ("tokenizer", self.tokenizer),
            ("logits", self.logits),
        ]
        if self.format == "apr":
            questions.insert(1, ("checksum", self.checksum))
        if self._bare_pieces:
            questions.append(("sentencepiece", self.sentencepiece))
        if self.shown_to_peers.format == "gguf":
            questions += [("llama.cpp", self.llama_cpp), ("llama.cpp (wheel)", self.xllamacpp)]
        elif self.shown_to_peers.format == "hf":
            questions.append(("transformers", self.transformers))
        for name, question in questions:
            yield timed(name, lambda question=question: _guarded(question))  # type: ignore[misc]

    def foreign(self) -> Outcome:
        """Another implementation's reader sees the same tensors at the same bytes."""
        from apr.export import foreign

        shown = self.shown_to_peers
        read = foreign.gguf if shown.format == "gguf" else foreign.safetensors
        out = read(shown.path)
        return replace(out, message=self._of_source + out.message)

    @property
    def _of_source(self) -> str:
        """What a message begins with where another program saw the source, not the output."""
        return "of the source, " if self.format == "apr" else ""

    def checksum(self) -> Outcome:
        """Every byte and every rule of the written `.apr` file."""
        from apr.checkpoint import verify

        found = verify(self.target)
        return passed(
            f"checksum {found.checksum} over {found.size_bytes:,} bytes holds",
            checksum=found.checksum,
            size_bytes=found.size_bytes,
        )

    def tokenizer(self) -> Outcome:
        """Ids of real text, from the output's tokenizer and the source's."""
        found = comparison.tokenizers(self.source, self.written, self.texts)
        caveats = self.source.require_tokenizer().gguf_caveats if self.format == "gguf" else []
        if not caveats:
            return found
        # The texts agree, but others can differ: whoever hands the file on must know.
        message = "; ".join([found.message, *(f"note: {caveat}" for caveat in caveats)])
        return replace(found, message=message, figures={**found.figures, "caveats": caveats})

    def logits(self) -> Outcome:
        """Logits of both, by our engine."""
        rules = comparison.rules()["logits"]
        bound = (
            rules["converted"].get(self.main_type, rules["converted"]["F32"])
            if self.changed
            else rules["same_weights"]
        )
        out = comparison.logits(self.source_logits, self.written_logits, bound)
        message, figures = f"{out.message} (float32)", out.figures
        caveats = families.gguf_caveats(self.source.architecture) if self.format == "gguf" else []
        if caveats:  # of the loader's settings, which no file can make
            message = "; ".join([message, *(f"note: {caveat}" for caveat in caveats)])
            figures = {**figures, "caveats": caveats}
        return Outcome(out.verdict, message, figures)

    # -- peers ----------------------------------------------------------------------------------

    def _ask(self, peer: str, **options: Any) -> peers.Answer:
        rule = comparison.rules()["peer_timeout"]
        size = self.shown_to_peers.size_bytes / 1e9
        return peers.ask(
            peer,
            self.shown_to_peers.path,
            texts=self.texts,
            prompt=self.prompt,
            greedy=self.greedy,
            last=self.compared,
            threads=self.threads,
            timeout=rule["seconds"] + rule["seconds_per_gigabyte"] * size,
            **options,
        )

    def _unavailable(self, package: str) -> Outcome | None:
        if not self.ask_peers:
            return skipped(_NO_PEERS)
        if not peers.installed(package):
            return skipped(f"the package {package} is not installed")
        if self.precision is None:
            return skipped("the model does not fit into the free memory")
        return None

    @property
    def _bare_pieces(self) -> bool:
        """Whether the source is a folder with a tokenizer.model and no tokenizer.json."""
        folder = self.source.path
        return (
            self.format == "apr"
            and self.source.format == "hf"
            and not (folder / "tokenizer.json").is_file()
        )

    def sentencepiece(self) -> Outcome:
        """The ids that SentencePiece's own library gives with the source's tokenizer.model."""
        if not self.ask_peers:
            return skipped(_NO_PEERS)
        if not peers.installed("sentencepiece"):
            return skipped("the package sentencepiece is not installed")
        import sentencepiece

        path = str(self.source.path / "tokenizer.model")
        theirs = sentencepiece.SentencePieceProcessor(model_file=path).encode(self.texts)
        ours = self.written.require_tokenizer().encode_batch(self.texts)
        return comparison.same_ids(self.texts, ours, theirs)

    def _same_ids(self, answer: peers.Answer) -> Outcome:
        """A peer's token ids of the texts; not compared where they are known to differ."""
        if tokens_differ(self.source):
            return passed("token ids are not compared: they differ, as allowed")
        if self._bare_pieces and answer.details.get("class"):
            # Seen with transformers 5.23: merges in another order, and no space before the text.
            # What stands in the file is SentencePiece's, and llama.cpp is asked on export.
            return passed(
                "token ids are not compared: transformers reads a tokenizer.model without a "
                "tokenizer.json otherwise than SentencePiece"
            )
        ours = self.source.require_tokenizer().encode_batch(self.texts)
        return comparison.same_ids(self.texts, ours, answer.token_ids)

    def _bound(self, bound: dict[str, float]) -> dict[str, float]:
        """A peer's bound; wider where it computes with the source and the output was rounded."""
        if self.format != "apr" or not self.changed:
            return bound
        converted = comparison.rules()["logits"]["converted"]
        rounded = converted.get(self.main_type, converted["F32"])
        return {key: max(value, rounded[key]) for key, value in bound.items()}

    @property
    def _gelu(self) -> bool:
        return self.source.architecture.hidden_act.startswith("gelu")

    def llama_cpp(self) -> Outcome:
        """llama.cpp's raw logits in its exact mode, and its token ids."""
        reason = self._unavailable("llama_cpp")
        if reason is not None:
            return reason
        answer = self._ask("llama_cpp")
        ids = self._same_ids(answer)
        if ids.verdict != "pass" or answer.logits is None:
            return ids
        all_rules = comparison.rules()["logits"]
        rules = all_rules["llama_cpp"]
        bound = self._bound(rules.get(_main_type(self.shown_to_peers), rules["other"]))
        if self._gelu:
            gelu = all_rules["llama_cpp_gelu"]
            bound = {key: max(value, gelu[key]) for key, value in bound.items()}
        out = comparison.logits(self.written_logits, answer.logits, bound)
        version = answer.details["version"]
        return Outcome(
            out.verdict,
            f"{self._of_source}llama-cpp-python {version}: {ids.message}; {out.message}",
            {**ids.figures, **out.figures, "greedy": answer.greedy, "version": version},
        )

    def xllamacpp(self) -> Outcome:
        """llama.cpp from the ready wheel: token ids and the token it would continue with."""
        reason = self._unavailable("xllamacpp")
        if reason is not None:
            return reason
        answer = self._ask("xllamacpp")
        ids = self._same_ids(answer)
        if ids.verdict != "pass":
            return ids
        version = answer.details["version"]
        message = f"{self._of_source}xllamacpp {version}: {ids.message}"
        if not self.greedy:
            return Outcome("pass", f"{message}; no room to continue the prompt", ids.figures)
        row = self.written_logits[-1].astype(np.float64)
        row -= np.log(np.exp(row - row.max()).sum()) + row.max()
        best = int(row.argmax())
        if not answer.greedy:
            ends = best in self.source.require_tokenizer().eos_token_ids
            judge = passed if ends else failed
            return judge(f"{message}; it ends the text here, our engine gives {best}")
        theirs = answer.greedy[0]
        gap = float(row[best] - row[theirs])
        stated = answer.details["log_probabilities"]
        far = max((abs(float(row[token]) - value) for token, value in stated), default=0.0)
        all_rules = comparison.rules()["logits"]
        rules = all_rules["xllamacpp"]
        bound = rules.get(_main_type(self.shown_to_peers), rules["other"])
        if self._gelu:
            bound = max(bound, all_rules["xllamacpp_gelu"])
        if self.format == "apr" and self.changed:
            bound = max(bound, rules.get(self.main_type, rules["other"]))
        figures = {"greedy": answer.greedy, "max_abs_nats": far, "version": version}
        if stated:
            message += f"; largest difference of {len(stated)} log-probabilities {far:.2e}"
        if far > bound or (best != theirs and gap > bound):
            return failed(
                f"{message} (allowed {bound:g}); it continues with token {theirs}, our engine "
                f"with {best}, {gap:.3f} nats apart",
                **ids.figures,
                **figures,
            )
        return passed(f"{message}; next token {theirs} as ours", **ids.figures, **figures)

    def transformers(self) -> Outcome:
        """AutoModelForCausalLM and AutoTokenizer on the folder, with nothing added."""
        reason = self._unavailable("transformers")
        if reason is not None:
            return reason
        answer = self._ask("transformers", dtype=self.precision)
        problems = answer.details.get("problems")
        if problems:
            return failed(f"transformers reports {problems}")
        ids = self._same_ids(answer)
        if ids.verdict != "pass":
            return ids
        tokenizer = self.source.require_tokenizer()
        eos = tokenizer.eos_token_ids[0] if tokenizer.eos_token_ids else None
        theirs = answer.details["eos_token_id"]
        ends = answer.details.get("generation_eos_token_ids", [])
        # A source may state its end in config.json alone, where a tokenizer does not look: then
        # transformers' class for it falls back to an end of its own.
        if theirs != eos and not (self.format == "apr" and (theirs is None or eos in ends)):
            return failed(f"eos_token_id is {theirs}, the source's {eos}")
        if not set(ends) <= set(tokenizer.eos_token_ids):
            return failed(f"generation ends at {ends}, the source at {tokenizer.eos_token_ids}")
        if answer.logits is None:
            return failed("transformers gave no logits")
        rules = comparison.rules()["logits"]
        exact = self.precision == "float32"
        bound = self._bound(rules["transformers"] if exact else rules["converted"]["BF16"])
        out = comparison.logits(self.written_logits, answer.logits, bound)
        version = answer.details["version"]
        return Outcome(
            out.verdict,
            f"{self._of_source}transformers {version}, {answer.details['class']} "
            f"in {self.precision}: {ids.message}; {out.message}",
            {**ids.figures, **out.figures, "greedy": answer.greedy, "version": version},
        )


def _guarded(question: Callable[[], Outcome]) -> Outcome:
    """A question that could not be asked because the output is wrong is a failed one."""
    try:
        return question()
    except AprError as error:
        return failed(error.line())


def _main_type(model: OpenedModel) -> str:
    names = Counter(t.dtype.name for t in model.tensors.values() if len(t.shape) > 1)
    return names.most_common(1)[0][0]


def _widened(source: str, target: str) -> bool:
    """Whether every value of the source's type is one of the target's, so nothing was rounded."""
    return target == "F32" and source in ("F16", "BF16")
