"""What is drawn: lengths, prompts and arrivals. Pure functions of a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from jupyter_dsserve.bench.plan import Lengths, Plan

# Words of common length, so that a number of them is about a number of tokens in any tokenizer.
_TEXT = """
able about above across after again air all along always animal answer any apple around ask autumn away back bad
bank bear beautiful because before begin below best better between bird black blue boat body book both bottom bread
bridge bright bring brother build burn busy call carry cat centre chair change child circle city clean clear close
cloud coast cold colour come common cook corner count country cover cross dance dark day deep desk different door
down draw dream dress drink drive dry early earth east easy eat edge eight empty end enough even evening every
example eye face fall family far farm fast father field fill find fire first fish five floor flower follow food foot
forest four fresh friend front fruit full garden gentle glass gold good grass great green ground grow half hand
happy harbour hard head hear heart heavy help here high hill history hold home horse hour house hundred idea island
keep kind kitchen know lake land language large last late laugh learn leave left letter light line listen little
long look lost loud low machine make many map market mean measure meet middle milk mind minute money month moon
morning mother mountain mouth move much music name near never new night nine north note number ocean often old open
orange order other outside page paint paper part pass peace people picture piece place plain plant play point
quarter question quick quiet rain reach read ready red rest rice right ring rise river road rock room round run salt
same sand school sea season second seed seven shadow shape ship shop short show side silver simple sing sister six
sky sleep slow small snow soft song sound south speak spring square stand star start stone story street strong sugar
summer sun table take talk tall ten thing think three time together town travel tree true turn under until valley
village voice wait walk wall warm watch water weather week west white wide wild wind window winter wish wood word
work world write year yellow young
"""
WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Task:
    """One request to make."""

    prompt: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Scale:
    """What a prompt of n words is in tokens: ``overhead + n × tokens_per_word``. The overhead is a chat's template."""

    overhead: float = 0.0
    tokens_per_word: float = 4 / 3  # of English in the tokenizers of today, if the server does not say

    @staticmethod
    def measured(few: tuple[int, int], many: tuple[int, int]) -> Scale:
        """From (words, tokens) of two prompts."""
        per_word = (many[1] - few[1]) / (many[0] - few[0])
        return Scale(few[1] - per_word * few[0], per_word) if per_word > 0 else Scale()

    def num_words(self, num_tokens: int) -> int:
        return max(1, round((num_tokens - self.overhead) / self.tokens_per_word))


def text_of(num_words: int, draw: random.Random) -> str:
    """Words at random: no two prompts begin alike, so a server's prefix cache has nothing to give."""
    return " ".join(draw.choices(WORDS, k=num_words))


def length(lengths: Lengths, draw: random.Random) -> int:
    """A number of tokens."""
    if lengths.kind == "lognormal":
        drawn = draw.lognormvariate(math.log(lengths.median), lengths.sigma)
        return round(min(lengths.high, max(lengths.low, drawn)))
    return draw.randint(lengths.low, lengths.high)


def tasks(plan: Plan, point: int, scale: Scale) -> Iterator[Task]:
    """The requests of the sweep's point number ``point``, without end. Each is drawn by itself: the third is the same
    whoever asks it, and whenever."""
    index = 0
    while True:
        draw = random.Random(f"{plan.seed}/{point}/{index}")
        num_prompt, num_output = length(plan.prompt_tokens, draw), length(plan.output_tokens, draw)
        yield Task(text_of(scale.num_words(num_prompt), draw), num_output)
        index += 1


def arrivals(rate: float, seed: int, point: int) -> Iterator[float]:
    """When requests arrive, in seconds from the start, without end: a Poisson process of ``rate`` a second, whose gaps
    are exponential."""
    draw = random.Random(f"{seed}/{point}/arrivals")
    at = 0.0
    while True:
        at += draw.expovariate(rate)
        yield at
