"""How likely a model finds an answer: the arithmetic that training and every loss share."""

import torch
from torch import Tensor
from torch.nn import functional


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL of each token, nats. logits: [tokens, vocabulary], targets: [tokens] -> [tokens].

    With two words and equal logits a token costs ln 2:

    >>> token_nll(torch.zeros(1, 2), torch.tensor([0])).item()
    0.6931471824645996
    """
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def per_answer(values: Tensor, answers: Tensor, count: int) -> Tensor:
    """The mean of each answer's tokens. values, answers: [tokens] -> [count].

    >>> per_answer(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2)
    tensor([2., 5.])
    """
    sums = values.new_zeros(count).index_add(0, answers, values)
    return sums / torch.bincount(answers, minlength=count).clamp(min=1)
