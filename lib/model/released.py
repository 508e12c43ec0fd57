"""What the released LLaVA-1.5 models went through before they were released, as their makers say.

Our small model keeps a log of its own four stages; of these models' training only this is known.
"""

import pandas as pd

NO_LOG = ("The released models come without a log of their training, so there is nothing to draw "
          "here: the table above is what is known of it. (The profile `laptop` shows the curves.)")
_STAGES = (  # stage, who learned, from what, machines, time
    ("contrastive", "vision tower, beside a text tower", "400 million pictures with captions",
     "256 V100", "12 days"),
    ("language", "language model", "Llama 2, then about 125 thousand conversations (Vicuna v1.5)",
     "unknown to us", "unknown to us"),
    ("alignment", "projector alone", "558 thousand captions", "8 A100",
     "3.5 hours (7B), 5.5 hours (13B)"),
    ("instruction", "projector and language model", "665 thousand conversations", "8 A100",
     "10 hours (7B), 20 hours (13B)"),
)


def stages() -> pd.DataFrame:
    """A row per stage of training: who learned, from what, on which GPUs, for how long.

    Sources: the CLIP paper (for its largest vision transformer), Vicuna's model card, LLaVA's
    README.
    """
    return pd.DataFrame(_STAGES, columns=["stage", "who learned", "from what", "GPUs", "time"])
