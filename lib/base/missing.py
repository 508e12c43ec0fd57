"""What the work needs and does not find here is said in one sentence, without a traceback."""


class Missing(RuntimeError):
    """No download, folder, result, GPU or memory for it; the message is a sentence with advice.

    Jupyter shows this sentence alone, and a notebook that meets it stops there; so does
    `./reproduce.sh`.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [str(self)]
