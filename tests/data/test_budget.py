"""The gate's figures are those of the papers, and each of its rules can fire."""

import json

import pytest
from data_standin import architecture

from apr import contracts, families
from apr.data.budget import Budget, judge, law, short, worth
from apr.errors import UsageError

PARAMETERS = families.num_parameters(architecture())


def plan(per_parameter, epochs):
    """A plan of that many worth tokens per parameter, over a text seen so often."""
    share = worth(1.0, epochs) / max(epochs, 1.0) if epochs > 1 else 1.0
    planned = round(per_parameter * PARAMETERS / share)
    return judge(
        architecture(), unique_tokens=max(round(planned / epochs), 1), planned_tokens=planned
    )


@pytest.mark.parametrize(
    ("fit", "ratios"),
    [
        ("hoffmann_rounded", (16, 26, 40, 93)),
        ("besiroglu", (29, 26, 23, 18)),
        ("muennighoff", (19.6, 19.6, 19.6, 19.6)),
    ],
)
def test_the_optimal_tokens_per_parameter_are_those_of_the_published_table(fit, ratios):
    for flops, expected in zip((1e16, 1e18, 1e20, 5.76e23), ratios, strict=True):
        parameters, tokens = law(fit).optimum(flops)
        assert 6 * parameters * tokens == pytest.approx(flops)
        assert tokens / parameters == pytest.approx(expected, abs=0.5 if expected != 19.6 else 0.05)


@pytest.mark.parametrize("fit", list(contracts.load("budget")["fits"]))
def test_the_closed_form_is_the_least_loss_along_the_compute(fit):
    one = law(fit)
    for flops in (1e15, 1e19, 1e24):
        best, _ = one.optimum(flops)
        least = one.loss(best, flops / 6 / best)
        for factor in (0.5, 0.97, 1.03, 2):
            assert one.loss(best * factor, flops / 6 / (best * factor)) > least


@pytest.mark.parametrize(
    ("epochs", "percent"), [(0.5, 100), (1, 100), (2, 98), (4, 93), (8, 83), (16, 66), (40, 38)]
)
def test_repeated_tokens_are_worth_what_muennighoff_measured(epochs, percent):
    assert round(100 * worth(1e6, epochs * 1e6) / (epochs * 1e6)) == percent


def test_no_number_of_epochs_is_worth_more_than_16_4_times_the_text():
    assert worth(1e6, 1e12) == pytest.approx(16.3878e6)


@pytest.mark.parametrize(
    ("per_parameter", "epochs", "verdict", "rules"),
    [
        (20.1, 0.5, "ok", []),
        (20.1, 4.0, "ok", []),
        (19.9, 1.0, "warning", ["BUDGET-TOKENS-WARN"]),
        (10.1, 1.0, "warning", ["BUDGET-TOKENS-WARN"]),
        (9.9, 1.0, "refusal", ["BUDGET-TOKENS-REFUSE"]),
        (30, 4.1, "warning", ["BUDGET-EPOCHS-WARN"]),
        (30, 15.9, "warning", ["BUDGET-EPOCHS-WARN"]),
        (30, 16.1, "refusal", ["BUDGET-EPOCHS-REFUSE"]),
        (15, 16.1, "refusal", ["BUDGET-EPOCHS-REFUSE", "BUDGET-TOKENS-WARN"]),
        (5, 40, "refusal", ["BUDGET-EPOCHS-REFUSE", "BUDGET-TOKENS-REFUSE"]),
    ],
)
def test_the_verdict_follows_from_the_rules_that_fire(per_parameter, epochs, verdict, rules):
    budget = plan(per_parameter, epochs)
    assert budget.verdict == verdict
    assert sorted(reason.rule for reason in budget.reasons) == rules
    assert all(reason.message for reason in budget.reasons)


def test_every_rule_of_the_contract_is_seen_to_fire_above():
    fired = {
        reason.rule
        for ratio, epochs in ((5, 1), (15, 1), (30, 5), (30, 17))
        for reason in plan(ratio, epochs).reasons
    }
    assert fired == {rule["id"] for rule in contracts.load("budget")["rules"]}


def test_a_small_corpus_repeated_a_hundred_times_and_a_plan_cut_short_are_both_refused():
    unique = 1_000_000
    assert (
        judge(architecture(), unique_tokens=unique, planned_tokens=100 * unique).verdict
        == "refusal"
    )
    plenty = 1000 * PARAMETERS
    assert (
        judge(architecture(), unique_tokens=plenty, planned_tokens=PARAMETERS // 5).verdict
        == "refusal"
    )


def test_22_million_tokens_for_half_a_billion_parameters_are_refused():
    half_a_billion = architecture(
        hidden_size=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=4864,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    budget = judge(half_a_billion, unique_tokens=22_000_000, planned_tokens=22_000_000)
    assert budget.verdict == "refusal"
    assert budget.tokens_per_parameter == pytest.approx(0.0445, abs=0.0002)
    assert 493e6 < budget.parameters < 495e6


def test_with_experts_the_gate_looks_at_what_one_token_uses_and_shows_the_rest():
    from dataclasses import replace

    from apr.model.costs import train_flops_per_token

    dense = architecture()
    # A mixture that visits as much as the dense model has: one expert of eight is that wide.
    table = {"num_experts": 8, "num_experts_per_tok": 1}
    sparse = replace(dense, **table, moe_intermediate_size=dense.intermediate_size)
    specs = families.tensor_specs

    def with_experts(arch):
        for spec in specs(arch):
            if ".mlp." in spec.name and arch.num_experts:
                yield from (replace(spec, role="expert") for _ in range(8))
            else:
                yield spec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "tensor_specs", with_experts)
        budget = judge(sparse, unique_tokens=10**7, planned_tokens=10**7)
        assert train_flops_per_token(sparse, 64) == train_flops_per_token(dense, 64)
    plain = judge(dense, unique_tokens=10**7, planned_tokens=10**7)
    assert budget.parameters == plain.parameters == plain.parameters_total
    assert budget.parameters_total > 3 * budget.parameters
    assert (budget.verdict, budget.compute) == (plain.verdict, plain.compute)
    shown = {name: figure for name, figure, _ in budget.rows()}
    assert shown["parameters (active)"] == f"{PARAMETERS:,}"
    assert shown["parameters with all experts"] == f"{budget.parameters_total:,}"
    old = {k: v for k, v in plain.to_json().items() if k != "parameters_total"}
    assert type(plain).from_json(old) == plain


def test_the_gate_looks_at_all_parameters_and_shows_both_counts():
    budget = plan(15, 1)
    outside = families.num_parameters(architecture(), embedding=False)
    assert budget.parameters == PARAMETERS > budget.parameters_outside_embedding == outside
    shown = {what.strip(): figure for what, figure, _ in budget.rows()}
    assert shown["parameters (all)"] == f"{PARAMETERS:,}"
    assert shown["parameters outside the embedding"] == f"{outside:,}"
    assert shown["tokens per parameter"] == "15"
    assert shown["verdict"] == "warning"


def test_predictions_outside_the_fits_own_runs_say_so():
    small = plan(25, 1)
    assert len(small.extrapolated) == 2
    assert "extrapolated" in str(small.rows())
    assert "so it says nothing" in str(plan(0.1, 1).rows())
    big = architecture(hidden_size=2048, num_layers=24, vocab_size=32_000, intermediate_size=5504)
    budget = judge(big, unique_tokens=10**11, planned_tokens=3 * 10**10)
    assert budget.extrapolated == ()
    assert 2.2 < budget.optimal_loss < budget.predicted_loss < 2.6


def test_the_record_reads_back_also_with_what_the_trainer_adds():
    budget = plan(5, 5)
    record = json.loads(json.dumps({**budget.to_json(), "bypassed": "a toy on purpose"}))
    assert Budget.from_json(record) == budget


@pytest.mark.parametrize("figures", [(0, 5), (5, 0), (-1, 5)])
def test_nothing_to_train_on_is_a_usage_error(figures):
    with pytest.raises(UsageError):
        judge(architecture(), unique_tokens=figures[0], planned_tokens=figures[1])


def test_counts_are_shown_with_three_digits_and_a_unit():
    assert [short(v) for v in (7, 1234, 45_600_000, 7.891e9, 1.5e12, 2e20)] == [
        "7",
        "1.23 k",
        "45.6 M",
        "7.89 B",
        "1.5 T",
        "2e+20",
    ]
