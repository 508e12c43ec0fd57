"""The losses of the paper: terms as tensors -> one number. A method is a row of weights.

`python -m lib.losses --table` prints the rows. Every term but `kl` is a negative log-likelihood
(NLL, nats): the mean over an answer's tokens, then the mean over answers.
"""

import argparse
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

TERMS = {  # the answers of each term
    "forget": "harmful answer, harmful image",
    "refusal": "refusal, harmful image",
    "retain": "normal answers of the retain set",
    "kl": "the original model's distribution on the retain answers",
    "prompt_decouple": "normal answer to the harmful set's query, safe image",
    "refusal_and_retain": "refusal and retain answers as one batch, every token alike",
}

# Official code, forget.py:363-500. Adding PD halves GD's retain weight there, and the weight of PD
# differs by method; `po` is called `idk` there, and its one batch is a token-weighted mean.
OFFICIAL = {
    ("ga", False): {"forget": -1.0},
    ("ga", True): {"forget": -1.0, "prompt_decouple": 0.5},
    ("gd", False): {"forget": -1.0, "retain": 1.0},
    ("gd", True): {"forget": -1.0, "retain": 0.5, "prompt_decouple": 0.5},
    ("kl", False): {"forget": -1.0, "kl": 1.0},
    ("kl", True): {"forget": -1.0, "kl": 1.0, "prompt_decouple": 1.0},
    ("po", False): {"refusal_and_retain": 1.0},
    ("po", True): {"refusal_and_retain": 1.0, "prompt_decouple": 1.0},
}
# "PD added to a method" taken at its word: weight 1, and nothing else changes.
ADDED = {
    (method, added): {**row, **({"prompt_decouple": 1.0} if added else {})}
    for method, row in {
        "ga": {"forget": -1.0},
        "gd": {"forget": -1.0, "retain": 1.0},
        "kl": {"forget": -1.0, "kl": 1.0},
        "po": {"refusal": 1.0, "retain": 1.0},
    }.items()
    for added in (False, True)
}
ROWS = {"official": OFFICIAL, "added": ADDED}
METHODS = ("ga", "gd", "kl", "po")


def weights(method: str, prompt_decouple: bool, prompt_decouple_weight: float | None = None,
            rows: str = "official") -> dict[str, float]:
    """The method's row of weights by term; `prompt_decouple_weight` replaces that one weight.

    >>> weights("gd", True)
    {'forget': -1.0, 'retain': 0.5, 'prompt_decouple': 0.5}
    >>> weights("po", True, 0.3)
    {'refusal_and_retain': 1.0, 'prompt_decouple': 0.3}
    """
    if method not in METHODS or rows not in ROWS:
        raise ValueError(f"There is no method {method!r} in the rows {rows!r}; methods: "
                         f"{', '.join(METHODS)}; rows: {', '.join(ROWS)}.")
    row = dict(ROWS[rows][method, bool(prompt_decouple)])
    if prompt_decouple_weight is not None:
        if not prompt_decouple:
            raise ValueError("A weight for PD needs prompt_decouple=True.")
        row["prompt_decouple"] = float(prompt_decouple_weight)
    return row


def total(terms: Mapping[str, Tensor], row: Mapping[str, float]) -> Tensor:
    """The weighted sum of the terms in the row. Every term of the row must be there.

    >>> terms = {"forget": torch.tensor(3.0), "retain": torch.tensor(0.5)}
    >>> total(terms, {"forget": -1.0, "retain": 1.0}).item()
    -2.5
    """
    return sum(weight * terms[name] for name, weight in row.items())


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


def nll_terms(logits: Tensor, targets: Tensor, answers: Tensor,
              names: Sequence[str]) -> dict[str, Tensor]:
    """Every NLL term whose answers are there: name -> scalar.

    logits: [tokens, vocabulary], targets and answers: [tokens]; names: the term of each answer.
    `refusal_and_retain` (PO's official term) is there when refusals or retain answers are: one
    mean over all their tokens, so that a long answer weighs more than a short one.
    """
    tokens = token_nll(logits, targets)
    means = per_answer(tokens, answers, len(names))
    found = {name: means[[i for i, of in enumerate(names) if of == name]].mean()
             for name in dict.fromkeys(names)}
    pooled = torch.tensor([name in ("refusal", "retain") for name in names],
                          device=answers.device)[answers]
    if pooled.any():
        found["refusal_and_retain"] = tokens[pooled].mean()
    return found


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


def table(rows: str = "official") -> pd.DataFrame:
    """The rows of weights: one line per method without and with PD, one column per term."""
    known = ROWS[rows]
    lines = {f"{method.upper()}{' + PD' if added else ''}": known[method, added]
             for method, added in known}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    return frame.reindex(columns=[term for term in TERMS if term in frame])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m lib.losses", description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", required=True, help="print the weights")
    parser.parse_args(arguments)
    for rows, title in (("official", "Official code (default)"), ("added", "PD simply added")):
        print(f"{title}\n{table(rows).to_string(na_rep='.')}\n")
    for term, meaning in TERMS.items():
        print(f"{term}: {meaning}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
