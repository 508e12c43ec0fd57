"""The terms of the losses: which answers each one reads, and how its number comes from them.

Unlearning asks for four kinds of answers (KINDS). A `Term` is one line of TERMS. Whatever has to
know what a term reads (the rows of a step, the shares of a lot, the cost of a run) asks it.
Every NLL (negative log-likelihood, nats) is the mean over an answer's tokens, then over answers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from lib.model.likelihood import per_answer, token_nll

KINDS = {  # of answers
    "forget": "harmful answer, harmful image",
    "refusal": "refusal, harmful image",
    "retain": "normal answers of the retain set",
    "prompt_decouple": "normal answer to the harmful set's query, safe image",
}

NPO_BETA = 0.1  # as in the paper's experiments


@dataclass(frozen=True)
class Said:
    """What a model gave for some answers; a term makes one number of it.

    logits: [tokens, vocabulary]; targets: [tokens]; answers: [tokens], of each token the place of
    its answer in `kinds`; kinds: one per answer; original: the logits of the model before
    unlearning, for terms that need them.
    """

    logits: Tensor
    targets: Tensor
    answers: Tensor
    kinds: Sequence[str]
    original: Tensor | None = None

    @cached_property
    def tokens(self) -> Tensor:
        """NLL of each token."""
        return token_nll(self.logits, self.targets)

    @cached_property
    def each(self) -> Tensor:
        """NLL of each answer."""
        return per_answer(self.tokens, self.answers, len(self.kinds))

    def of(self, reads: Iterable[str]) -> Tensor:
        """Which tokens belong to answers of these kinds: [tokens], true or false."""
        chosen = [kind in reads for kind in self.kinds]
        return torch.tensor(chosen, device=self.answers.device)[self.answers]


@dataclass(frozen=True)
class Term:
    """One line of TERMS: the kinds of answers it reads, and its number (a scalar) from `Said`.

    needs_original: `value` is given `Said.original`, and only the answers that the term reads.
    pools_tokens: a mean over all tokens alike, where the others are means over answers.
    """

    name: str
    reads: tuple[str, ...]
    value: Callable[[Said], Tensor]
    meaning: str
    needs_original: bool = False
    pools_tokens: bool = False


def answer_nll(kind: str) -> Term:
    """The term that is the NLL of one kind of answers."""
    return Term(kind, (kind,), lambda said: said.each[[of == kind for of in said.kinds]].mean(),
                KINDS[kind])


def kl(original: Tensor, current: Tensor, answers: Tensor, count: int) -> Tensor:
    """KL(original || current) in nats: mean over an answer's tokens, then over answers.

    original, current: logits [tokens, vocabulary], answers: [tokens] -> scalar. The official code
    (forget.py) takes it over the questions' and the image's positions as well.

    >>> even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 1.0986123]])  # 1/2, 1/2; 1/4, 3/4
    >>> round(kl(even, sure, torch.tensor([0]), 1).item(), 4)  # (ln 2 + ln 2/3) / 2
    0.1438
    """
    return per_answer(token_kl(original, current), answers, count).mean()


def token_kl(original: Tensor, current: Tensor) -> Tensor:
    """KL(original || current) of each token, nats. Logits: [tokens, vocabulary] -> [tokens]."""
    return functional.kl_div(current.float().log_softmax(-1), original.float().log_softmax(-1),
                             reduction="none", log_target=True).sum(-1)


def npo(said: Said) -> Tensor:
    """Negative preference optimisation (arXiv 2404.05868): nats, a scalar.

    -2 / beta * log sigmoid(-beta * log of the ratio of an answer's likelihoods, now to originally),
    mean over answers. Its gradient is that of GA, fading as the answer becomes unlikely.
    """
    fallen = said.tokens - token_nll(said.original, said.targets)
    fallen = fallen.new_zeros(len(said.kinds)).index_add(0, said.answers, fallen)  # whole answers
    return -2 / NPO_BETA * functional.logsigmoid(NPO_BETA * fallen).mean()


TERMS = {term.name: term for term in (
    answer_nll("forget"),
    answer_nll("refusal"),
    answer_nll("retain"),
    Term("kl", ("retain",),
         lambda said: kl(said.original, said.logits, said.answers, len(said.kinds)),
         "the original model's distribution on the retain answers", needs_original=True),
    answer_nll("prompt_decouple"),
    Term("refusal_and_retain", ("refusal", "retain"),
         lambda said: said.tokens[said.of(("refusal", "retain"))].mean(),
         "refusal and retain answers as one batch, every token alike", pools_tokens=True),
    Term("npo", ("forget",), npo, "harmful answers less likely than originally, within bounds",
         needs_original=True),
)}


def reads(names: Iterable[str]) -> set[str]:
    """The kinds of answers that these terms read.

    >>> sorted(reads({"forget": -1.0, "kl": 1.0}))
    ['forget', 'retain']
    """
    return {kind for name in names for kind in TERMS[name].reads}


def from_logits(said: Said, names: Iterable[str]) -> dict[str, Tensor]:
    """The NLL of each kind of answers that is there, and of the terms of these `names` those
    without `needs_original`: name -> scalar."""
    return {name: TERMS[name].value(said) for name in dict.fromkeys([*KINDS, *names])
            if not TERMS[name].needs_original and set(TERMS[name].reads).intersection(said.kinds)}


def total(terms: Mapping[str, Tensor], row: Mapping[str, float]) -> Tensor:
    """The weighted sum of the terms in the row. Every term of the row must be there.

    >>> terms = {"forget": torch.tensor(3.0), "retain": torch.tensor(0.5)}
    >>> total(terms, {"forget": -1.0, "retain": 1.0}).item()
    -2.5
    """
    return sum(weight * terms[name] for name, weight in row.items())
