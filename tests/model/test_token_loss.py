"""The chunked loss is the plain loss, and so are its gradients."""

import torch
import torch.nn.functional as F

from apr.model import loss


def test_the_chunked_loss_and_its_gradients_equal_the_plain_ones(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (3, 7), generator=generator)
    plain = F.cross_entropy((hidden @ head.T).transpose(1, 2), targets, reduction="none")
    wanted = torch.autograd.grad(plain.mean(), (hidden, head))
    for limit in (50 * 4, 1 << 28):  # six chunks, one chunk
        monkeypatch.setattr(loss, "MAX_LOGITS", limit)
        found = loss.token_losses(hidden, head, targets)
        gradients = torch.autograd.grad(found.mean(), (hidden, head))
        assert found.shape == (3, 7)
        assert torch.allclose(found, plain, atol=1e-5)
        for a, b in zip(gradients, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
