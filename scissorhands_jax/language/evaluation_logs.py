"""Reading the per-example logs of published evaluations of language models, whatever framework wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.answer_scores import EvaluationLog
from scissorhands_jax.language.log_parts import AGAIN
from scissorhands_jax.language.open_unlearning_logs import is_open_unlearning, read_open_unlearning_log
from scissorhands_jax.language.tofu_logs import TOFU_MEASURES, TOFU_SETS, read_tofu_log

_KNOWN = "TOFU's eval_log_aggregated.json or OpenUnlearning's *_EVAL.json"


def read_evaluation_log(path: str | os.PathLike) -> EvaluationLog:
    """Reads what one network did in a published evaluation.

    A log may lack sets or measures; it then allows fewer aggregates. What it has must be whole: each number finite and
    in its range, and measures that belong together about the same examples.

    Args:
      path: The file, in either format. Of the older format, the file of one set is read too, if it has its usual name.

    Raises:
      InputError: The file is missing, is larger or deeper than `reading` allows, has neither format, or is damaged.
    """
    path = Path(path)
    try:
        document = reading.read_json(path, nan=True)
    except OSError as error:
        raise InputError(
            f"the log {path} cannot be read ({error.strerror or error}); give a file that exists"
        ) from error
    except ValueError as error:
        raise InputError(f"the log {path} is damaged or is not JSON ({error}); {AGAIN}") from error
    if not isinstance(document, dict) or not document:
        raise InputError(f"{path} is not the log of an evaluation, since it has no named parts; give {_KNOWN}")
    if set(document) & set(TOFU_MEASURES):
        if path.name not in TOFU_SETS:
            raise InputError(
                f"{path} is the log of one set of questions, but its name does not say of which; name it "
                f"{', '.join(TOFU_SETS)}, or give eval_log_aggregated.json"
            )
        document = {path.name: document}
    if set(document) & set(TOFU_SETS):
        return read_tofu_log(path, document)
    if is_open_unlearning(document):
        return read_open_unlearning_log(path, document)
    if all(part is None or isinstance(part, int | float) for part in document.values()):
        raise InputError(f"{path} has aggregates only; give the file with the numbers of each example, {_KNOWN}")
    shown = ", ".join(repr(key[:40]) for key in list(document)[:4])
    raise InputError(f"{path} is not the log of an evaluation that is known: its parts are {shown}; give {_KNOWN}")
