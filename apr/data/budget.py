"""The data budget: is there enough text for a model of this size? Judged before step 1.

Formulas and constants are those of `contracts/budget.yaml`, each with its source; the verdict names
the rules that led to it. docs/spec/budget.md says which N and which D the gate means, and why.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from apr import contracts, families
from apr.architecture import Architecture
from apr.errors import UsageError

VERDICTS = ("ok", "warning", "refusal")


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token."""

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss it predicts, nats per token."""
        too_small = self.A / math.pow(parameters, self.alpha)
        too_little = self.B / math.pow(tokens, self.beta)
        return self.E + too_small + too_little

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the least loss with 6 N D = `flops`, in closed form."""
        total = self.alpha + self.beta
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        per_pass = flops / 6
        parameters = balance * per_pass ** (self.beta / total)
        return parameters, per_pass / parameters


def law(name: str | None = None) -> ScalingLaw:
    """A fit by its name in the contract; default the one that the contract chooses."""
    contract = contracts.load("budget")
    name = name or str(contract["fit"])
    return ScalingLaw(name=name, **contract["fits"][name])


def worth(unique_tokens: float, tokens: float) -> float:
    """What `tokens` seen are worth as fresh ones, when only `unique_tokens` of them are distinct.

    U + U R (1 - exp(-(epochs - 1) / R)) past the first epoch (Muennighoff 2023): at most 16.4 U.
    """
    if tokens <= unique_tokens:
        return float(tokens)
    r = float(contracts.load("budget")["repetition"]["R"])
    epochs = tokens / unique_tokens
    return unique_tokens + unique_tokens * r * -math.expm1(-(epochs - 1) / r)


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that fired: its id in the contract, what it asks for, and what was found."""

    rule: str
    verdict: str
    message: str


@dataclass(frozen=True, slots=True)
class Budget:
    """The judged budget. Tokens are tokens, losses nats per token, compute FLOPs (6 N D).

    `tokens_per_parameter` is what the gate looks at: `worth_tokens` over `parameters` (all that one
    token uses; `parameters_total` counts every expert). `optimal_*` split the same compute best;
    `predicted_loss` is for this N and `worth_tokens`, `optimal_loss` for the optimum.
    `extrapolated` says which of N and D lie outside the runs that the fit was made from;
    `untrained_loss` is ln(vocab_size), above which a prediction says nothing.
    """

    verdict: str
    reasons: tuple[Reason, ...]
    parameters: int
    parameters_outside_embedding: int
    unique_tokens: int
    planned_tokens: int
    epochs: float
    worth_tokens: float
    worth_per_token: float
    tokens_per_parameter: float
    tokens_per_parameter_outside_embedding: float
    planned_tokens_per_parameter: float
    compute: float
    optimal_parameters: float
    optimal_tokens: float
    predicted_loss: float
    optimal_loss: float
    untrained_loss: float
    fit: str
    extrapolated: tuple[str, ...]
    parameters_total: int | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-ready; the checkpoint's training record keeps this."""
        out = asdict(self)
        out["reasons"] = [asdict(reason) for reason in self.reasons]
        out["extrapolated"] = list(self.extrapolated)
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Budget:
        """The inverse of `to_json`; keys that are not ours (`bypassed`) are left aside."""
        # Files written before models had experts lack the total: there it is the same.
        old = {"parameters_total": data["parameters"]}
        values = {name: {**old, **data}[name] for name in cls.__dataclass_fields__}
        values["reasons"] = tuple(Reason(**reason) for reason in data["reasons"])
        values["extrapolated"] = tuple(data["extrapolated"])
        return cls(**values)

    def rows(self) -> list[tuple[str, str, str]]:
        """The table for people: (what, figure, remark), in order."""
        return _rows(self)

    def reason_lines(self) -> list[str]:
        """Why the verdict is what it is, one line a rule; empty if all is well."""
        return [f"[{reason.rule}] {reason.message}" for reason in self.reasons]


def judge(architecture: Architecture, *, unique_tokens: int, planned_tokens: int) -> Budget:
    """Judge a plan: a model, the distinct training tokens there are, the tokens to be trained on.

    Raises:
        UsageError: a number of tokens below 1.
    """
    for name, value in (("unique", unique_tokens), ("planned", planned_tokens)):
        if value < 1:
            raise UsageError("budget", f"{value} {name} tokens leave nothing to train on")
    everything = families.num_parameters(architecture, active=True)
    outside = families.num_parameters(architecture, embedding=False, active=True)
    valued = worth(unique_tokens, planned_tokens)
    epochs = planned_tokens / unique_tokens
    compute = 6.0 * everything * planned_tokens
    fit = law()
    best_n, best_d = fit.optimum(compute)
    reasons = _fired({"tokens_per_parameter": valued / everything, "epochs": epochs})
    return Budget(
        verdict=max((r.verdict for r in reasons), key=VERDICTS.index, default="ok"),
        reasons=reasons,
        parameters=everything,
        parameters_outside_embedding=outside,
        unique_tokens=unique_tokens,
        planned_tokens=planned_tokens,
        epochs=epochs,
        worth_tokens=valued,
        worth_per_token=valued / planned_tokens,
        tokens_per_parameter=valued / everything,
        tokens_per_parameter_outside_embedding=valued / outside,
        planned_tokens_per_parameter=planned_tokens / everything,
        compute=compute,
        optimal_parameters=best_n,
        optimal_tokens=best_d,
        predicted_loss=fit.loss(everything, valued),
        optimal_loss=fit.loss(best_n, best_d),
        untrained_loss=math.log(architecture.vocab_size),
        fit=fit.name,
        extrapolated=_outside_the_fit(everything, valued),
        parameters_total=families.num_parameters(architecture),
    )


def _fired(figures: dict[str, float]) -> tuple[Reason, ...]:
    """The rules that fire; of two on the same figure, the graver alone."""
    out: dict[str, Reason] = {}
    rules = contracts.load("budget")["rules"]
    for rule in sorted(rules, key=lambda rule: -VERDICTS.index(rule["verdict"])):
        name, value = rule["figure"], figures[rule["figure"]]
        if name in out:
            continue
        if "below" in rule and value < rule["below"]:
            message = f"{value:.3g} tokens per parameter, under {rule['below']}"
            out[name] = Reason(rule["id"], rule["verdict"], message)
        elif "above" in rule and value > rule["above"]:
            message = f"{value:.4g} epochs over the same text, more than {rule['above']}"
            out[name] = Reason(rule["id"], rule["verdict"], message)
    return tuple(out.values())


def _outside_the_fit(parameters: float, tokens: float) -> tuple[str, ...]:
    valid = contracts.load("budget")["validity"]
    out = []
    for name, value in (("parameters", parameters), ("tokens", tokens)):
        low, high = (float(bound) for bound in valid[name])
        if not low <= value <= high:
            side, bound = ("below", low) if value < low else ("above", high)
            out.append(f"{short(value)} {name} are {side} the {short(bound)} of its runs")
    return tuple(out)


def short(value: float) -> str:
    """A count with three digits and a unit: 1.23 k, 45.6 M, 7.89 B, 1.2 T."""
    for limit, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}" if value < 1000 * limit else f"{value:.3g}"
    return f"{value:.3g}"


def _rows(b: Budget) -> list[tuple[str, str, str]]:
    remark = "extrapolated: " + "; ".join(b.extrapolated) if b.extrapolated else f"{b.fit} fit"
    if b.predicted_loss > b.untrained_loss:
        remark = f"above ln(vocab) = {b.untrained_loss:.2f}, so it says nothing; {remark}"
    best = b.optimal_tokens / b.optimal_parameters
    experts = b.parameters_total is not None and b.parameters_total != b.parameters
    counted = "active" if experts else "all"
    total = [("parameters with all experts", f"{b.parameters_total:,}", "shown, not gated")]
    return [
        (
            "parameters (active)" if experts else "parameters (all)",
            f"{b.parameters:,}",
            "the gate's N",
        ),
        *(total if experts else []),
        ("parameters outside the embedding", f"{b.parameters_outside_embedding:,}", ""),
        ("unique tokens", f"{b.unique_tokens:,}", "training split, duplicates dropped"),
        ("planned tokens", f"{b.planned_tokens:,}", ""),
        ("epochs", f"{b.epochs:.3g}", "over 4 warns, over 16 is refused"),
        (
            "worth of the planned tokens",
            f"{b.worth_tokens:,.0f}",
            f"{100 * b.worth_per_token:.0f} % of fresh text (Muennighoff 2023)",
        ),
        (
            "tokens per parameter",
            f"{b.tokens_per_parameter:.3g}",
            f"worth / {counted} parameters; under 20 warns, under 10 is refused",
        ),
        (
            "  outside the embedding",
            f"{b.tokens_per_parameter_outside_embedding:.3g}",
            "shown, not gated",
        ),
        ("compute", f"{b.compute:.3g} FLOP", "6 N D"),
        (
            "best split of this compute",
            f"{short(b.optimal_parameters)} parameters, {short(b.optimal_tokens)} tokens",
            f"{best:.3g} tokens per parameter, loss {b.optimal_loss:.2f} ({b.fit} fit)",
        ),
        ("predicted loss of this plan", f"{b.predicted_loss:.2f} nats per token", remark),
        ("verdict", b.verdict, "; ".join(b.reason_lines())),
    ]
