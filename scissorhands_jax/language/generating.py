"""What a published model says to prompts, as text."""

from __future__ import annotations

from collections.abc import Sequence

from scissorhands_jax.base import Params
from scissorhands_jax.errors import InputError, check_whole
from scissorhands_jax.language.decoder import Sizes, step_decoder
from scissorhands_jax.language.greedy import greedy_tokens
from scissorhands_jax.language.text_files import TextPrompt
from scissorhands_jax.language.text_tokens import TextTokenizer


def generate_texts(
    sizes: Sizes,
    params: Params,
    tokenizer: TextTokenizer,
    prompts: Sequence[TextPrompt],
    *,
    max_tokens: int = 64,
    batch_size: int = 8,
) -> list[str]:
    """Says after each prompt the most probable token, again and again, until the answer ends.

    Args:
      sizes: The network.
      params: Its weights.
      tokenizer: Its tokenizer.
      prompts: What the network goes on with.
      max_tokens: The largest number of tokens of an answer.
      batch_size: The number of prompts that are answered at a time.

    Returns:
      The answers in the order of the prompts, without blanks around them.

    Raises:
      InputError: As for `encode_prompts`.
    """
    encoded = encode_prompts(sizes, tokenizer, prompts, max_tokens=max_tokens, batch_size=batch_size)
    said = greedy_tokens(
        step_decoder(sizes), params, {}, encoded, limits=max_tokens, ends=tokenizer.ends, batch_size=batch_size
    )
    return [tokenizer.decode(tokens).strip() for tokens in said]


def encode_prompts(
    sizes: Sizes, tokenizer: TextTokenizer, prompts: Sequence[TextPrompt], *, max_tokens: int = 64, batch_size: int = 8
) -> list[list[int]]:
    """The tokens of prompts that `generate_texts` can answer; no weights are needed.

    Args:
      sizes, tokenizer, prompts, max_tokens, batch_size: As for `generate_texts`.

    Raises:
      InputError: A number is below 1 or no whole number, a prompt has no token or one that the network does not know,
        or prompt and answer are longer than the context.
    """
    max_tokens, batch_size = check_whole("max_tokens", max_tokens, 1), check_whole("batch_size", batch_size, 1)
    encoded = [tokenizer.encode(prompt.text, after="" if prompt.is_whole else None).numbers for prompt in prompts]
    for (prompt, _), numbers in zip(prompts, encoded, strict=True):
        if not numbers:
            raise InputError(f"the prompt {prompt[:60]!r} has no tokens; write more")
        if len(numbers) + max_tokens > sizes.context:
            raise InputError(
                f"{prompt[:60]!r} has {len(numbers)} tokens, which with {max_tokens} for the answer are more than the "
                f"{sizes.context} that the network reads; shorten it or allow fewer"
            )
        if max(numbers) >= sizes.vocabulary:
            raise InputError(
                f"{prompt[:60]!r} has the token {max(numbers)}, and the network knows {sizes.vocabulary}; take "
                "tokenizer and weights of one model"
            )
    return encoded
