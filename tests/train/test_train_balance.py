"""The balance of experts: the loss is transformers', the bias moves as the paper says."""

import pytest
import torch

from apr.architecture import Architecture
from apr.model.decoder import Decoder, initialize
from apr.train.balance import BIAS_RATE, Experts, load_balancing_loss
from apr.train.evaluate import model_losses
from apr.train.optimizer import make_optimizer

SPARSE = {
    "family": "llama", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 16, "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "norm_topk_prob": True,
}  # fmt: skip
BIASED = {"router_scoring": "sigmoid", "router_correction_bias": True, "initializer_range": 0.2}


@pytest.fixture
def model():
    """Build a sparse decoder; `forward` on random ids is its batch."""

    def make(**changes) -> Decoder:
        model = Decoder(Architecture(**{**SPARSE, **changes}))
        initialize(model, torch.Generator().manual_seed(3))
        return model

    return make


def ids(seed: int, batch: int = 3) -> torch.Tensor:
    return torch.randint(0, 50, (batch, 16), generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_each_layer_is_that_of_transformers(model):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    model = model(initializer_range=0.5)
    states = []
    for router in Experts(model, 0.0).routers:
        router.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    model(ids(1))
    expected = []
    experts = Experts(model, 0.25)
    for router, x in zip(experts.routers, states, strict=True):
        theirs = mixtral.load_balancing_loss_func((x @ router.weight.T,), 8, top_k=2)
        counts = router.chosen.flatten().bincount(minlength=8)
        ours = load_balancing_loss(router.probabilities, counts)
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
        expected.append(theirs)
    added = experts.after_forward()
    assert added.item() == pytest.approx(0.25 * torch.stack(expected).mean().item(), abs=1e-5)
    assert min(e.item() for e in expected) > 2.01  # 2 experts a token: no less, and not even


def test_the_loss_is_least_where_all_experts_are_alike():
    even = load_balancing_loss(torch.full((8, 4), 0.25), torch.tensor([4, 4, 4, 4]))
    assert even.item() == pytest.approx(2.0)
    sure = torch.nn.functional.one_hot(torch.zeros(8, dtype=torch.int64), 4).float()
    assert load_balancing_loss(sure, torch.tensor([8, 8, 0, 0])).item() == pytest.approx(4.0)


def test_the_routers_hold_no_graph_after_a_step_and_none_in_an_evaluation(model):
    model = model()
    experts = Experts(model, 1e-3)
    model(ids(1))
    experts.after_forward()
    assert all(r.probabilities is None and r.chosen is None for r in experts.routers)
    with torch.inference_mode():
        model(ids(1))
    assert all(r.probabilities is None for r in experts.routers)


def test_the_bias_moves_by_the_rate_against_the_counts_of_all_micro_batches(model):
    model = model(**BIASED)
    experts = Experts(model, 0.0)
    chosen = []
    for seed in (1, 2, 3):
        model(ids(seed))
        chosen.append([r.chosen.flatten() for r in experts.routers])
        assert experts.after_forward() is None  # no loss beside the bias
    auxiliary, worst, dead = experts.after_step()
    counts = torch.stack(
        [torch.cat(parts).bincount(minlength=8) for parts in zip(*chosen, strict=True)]
    ).float()
    mean = 3 * 3 * 16 * 2 / 8
    for router, count in zip(experts.routers, counts, strict=True):
        assert torch.equal(router.e_score_correction_bias, BIAS_RATE * torch.sign(mean - count))
        assert router.e_score_correction_bias.grad is None
    assert worst.item() == pytest.approx(counts.max().item() / mean)
    assert dead.item() == (counts == 0).sum() and auxiliary.item() > 2.0
    assert experts.after_step() == []  # nothing was counted since


@pytest.mark.parametrize(
    "changes",
    [{"router_bias": True}, {**BIASED, "initializer_range": 0.005}],
    ids=["loss", "correction bias"],
)
def test_an_expert_that_is_favoured_loses_its_favour(model, changes):
    model = model(**changes)
    biased = "router_correction_bias" in changes
    experts = Experts(model, 0.0 if biased else 0.1)
    for router in experts.routers:
        bias = router.e_score_correction_bias if biased else router.bias
        bias.detach()[0] = 0.03 if biased else 0.3
    optimizer = make_optimizer(model, lr=1e-2, beta1=0.9, beta2=0.95, weight_decay=0.1)
    shares = []
    for step in range(30):
        batch = ids(step % 4, batch=8)
        loss = model_losses(model, model.hidden(batch[:, :-1]), batch[:, 1:]).mean()
        extra = experts.after_forward()
        (loss if extra is None else loss + extra).backward()
        if not biased:  # the bias alone must do it
            optimizer.step()
        optimizer.zero_grad()
        shares.append(experts.after_step()[1].item())
    assert shares[0] > 3.0 and max(shares[-4:]) < 2.0


def test_biases_that_select_are_left_to_the_balance_and_routers_decay(model):
    model = model(**BIASED, attention_sinks=True, router_bias=True)
    decayed, other = make_optimizer(
        model, lr=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.1
    ).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    held = {names[id(p)] for p in (*decayed["params"], *other["params"])}
    left = set(names.values()) - held
    assert left == {f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (0, 1)}
    plain = {names[id(p)].split(".")[-2:][0] for p in other["params"]}
    assert plain == {"input_layernorm", "post_attention_layernorm", "norm", "self_attn", "gate"}
    assert "model.layers.0.mlp.gate.weight" in {names[id(p)] for p in decayed["params"]}


def test_a_soft_cap_is_in_the_loss_as_in_the_logits():
    from apr.model.loss import token_losses

    hidden, head = torch.randn(2, 5, 8), torch.randn(50, 8) * 4
    targets = torch.randint(0, 50, (2, 5))
    logits = 3.0 * torch.tanh(hidden @ head.T / 3.0)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert torch.allclose(token_losses(hidden, head, targets, 3.0).mean(), expected, atol=1e-6)


def test_the_router_computes_in_float32_under_autocast(model):
    model = model(initializer_range=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        model(ids(1)).sum().backward()
    for router in Experts(model, 0.0).routers:
        assert router.probabilities.dtype == torch.float32
        # bfloat16 logits would make these a few hundred distinct values apart by 2^-8
        assert torch.allclose(router.probabilities.sum(-1), torch.ones(()), atol=1e-6)
