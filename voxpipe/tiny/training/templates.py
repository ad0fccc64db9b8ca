# ruff: noqa: SIM905
"""Spoken phrases that novels lack: single words, digits, numbers, dates, commands, prompts, prices, questions.

`phrases` returns them as plain text; run as a program, the module phonemises them and writes them, together with the
sentences of novels (.tsv.gz of book, text, phonemes) and of other free texts (`corpus`), to one .tsv.xz for the synthesiser.

    python -m voxpipe.tiny.training.templates NOVELS.tsv.gz VOCAB.json OUT.tsv.xz --corpus CORPUS.tsv
"""

import argparse
import gzip
import json
import lzma
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .conversation import Names, named, numbers_aloud, small_talk, things
from .text import build_sentence, words_of

MOST_PHONEMES = 480  # the synthesiser takes 510
HELD_OUT_BOOKS = ("Time-Machine",)

# word lists are written as strings, one blank between words: they stay readable (SIM905 is off here)
DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
).split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NAMES = (
    "Anna Peter Maria David Sarah John Emma Michael Laura James Julia Thomas Alice Robert Linda Mark Susan Kevin "
    "Nina Paul Marvin Sheila Helen Daniel Karen Steven Rachel George Olivia Henry"
).split()
COMMAND_WORDS = (
    "yes no up down left right on off stop go zero one two three four five six seven eight nine backward forward "
    "bed bird cat dog follow happy house learn marvin sheila tree visual wow"
).split()
THINGS = (
    "the lights,the music,the radio,the kitchen light,the heating,the television,the alarm,the fan,the window,"
    "the door,the garage,the computer,the phone,the printer,the coffee machine,the report,the meeting,the file,"
    "the message,the email"
).split(",")
APPS = "email,calendar,browser,camera,music player,messages,settings,map,notes,calculator".split(",")
FOOD = "milk bread eggs coffee apples bananas cheese rice tomatoes chicken water tea sugar pasta butter".split()
PROMPTS = (
    "Thank you|Goodbye|Hello|Please wait|Please hold|One moment please|Try again|I am sorry|Not available|Yes|No|Okay|"
    "Good morning|Good evening|Welcome|Stop|Start|Next|Previous|Please enter your password|Please leave a message|"
    "The number you have dialed is not in service|Your call is important to us|All of our operators are busy|"
    "We will call you back|Say that again please|Call waiting|Call forwarding|Please try your call again later"
).split("|")
MENU = (
    "continue|listen to your messages|speak to an operator|delete this message|save this message|record your name|"
    "hear more options|return to the main menu|exit|change your password"
).split("|")


def spoken_number(n: int, choose: random.Random) -> str:
    """Return a number below a million in words."""
    if n < 10:
        return DIGITS[n]
    if n < 20:
        return TEENS[n - 10]
    if n < 100:
        return TENS[n // 10 - 2] + (" " + DIGITS[n % 10] if n % 10 else "")
    if n < 1000:
        rest = choose.choice([" ", " and "]) + spoken_number(n % 100, choose) if n % 100 else ""
        return DIGITS[n // 100] + " hundred" + rest
    return spoken_number(n // 1000, choose) + " thousand" + (" " + spoken_number(n % 1000, choose) if n % 1000 else "")


def phrases(common_words: list[str], seed: int = 1) -> list[str]:
    """Return about 6,000 phrases; `common_words` are spoken alone, so that isolated words are known."""
    choose = random.Random(seed)
    pick = choose.choice

    def number(low: int, high: int) -> str:
        return spoken_number(choose.randint(low, high), choose)

    def polite_hour() -> str:
        return pick(["in the morning", "in the afternoon", "p m", "a m", "at night"])

    kinds: list[tuple[int, Callable[[], str]]] = [
        (350, lambda: pick(DIGITS)),
        (900, lambda: pick(COMMAND_WORDS)),
        (300, lambda: ". ".join(pick(COMMAND_WORDS) for _ in range(choose.randint(2, 5))) + "."),
        (1000, lambda: pick(common_words)),
        (250, lambda: ", ".join(pick(DIGITS) for _ in range(choose.randint(2, 7)))),
        (250, lambda: number(10, 999)),
        (200, lambda: number(1000, 99999)),
        (80, lambda: pick(ORDINALS)),
        (150, lambda: f"{pick(DAYS)}, {pick(MONTHS)} {pick(ORDINALS)}."),
        (150, lambda: f"It is {number(1, 12)} {number(10, 59)} {polite_hour()}."),
        (
            250,
            lambda: (
                f"{pick(['Please turn', 'Turn', 'Can you turn', 'Could you turn'])} "
                f"{pick(['on', 'off', 'up', 'down'])} {pick(THINGS)}."
            ),
        ),
        (
            150,
            lambda: (
                f"Set {pick(['a timer', 'an alarm', 'a reminder'])} for {number(1, 59)} "
                f"{pick(['minutes', 'seconds', 'hours'])}."
            ),
        ),
        (
            150,
            lambda: (
                f"Send {pick(THINGS)} to {pick(NAMES)} "
                f"{pick(['tomorrow', 'today', 'on ' + pick(DAYS), 'next week', 'tonight'])}."
            ),
        ),
        (
            150,
            lambda: (
                f"{pick(['Call', 'Text', 'Ask', 'Tell', 'Remind'])} {pick(NAMES)} "
                f"{pick(['about', 'to bring', 'to check', 'to send'])} {pick(THINGS)}."
            ),
        ),
        (120, lambda: f"Open the {pick(APPS)}{pick(['', ' and close the ' + pick(APPS)])}."),
        (150, lambda: f"I need to buy {pick(FOOD)}, {pick(FOOD)} and {pick(FOOD)}."),
        (150, lambda: f"Press {pick(DIGITS)} {pick(['to', 'if you want to', 'in order to'])} {pick(MENU)}."),
        (
            120,
            lambda: (
                f"You have {number(0, 40)} {pick(['new', 'old', 'unread', 'urgent'])} "
                f"{pick(['messages', 'voice messages', 'emails', 'calls', 'notifications'])}."
            ),
        ),
        (150, lambda: f"{pick(PROMPTS)}{pick([', ' + pick(NAMES) + '.', '.', '.'])}"),
        (
            200,
            lambda: (
                f"{pick(['The price is', 'It costs', 'The total is', 'I paid', 'We owe them'])} "
                f"{number(1, 900)} dollars{pick(['', ' and ' + number(1, 99) + ' cents'])}."
            ),
        ),
        (
            150,
            lambda: (
                f"{pick(['The train', 'The bus', 'My flight', 'The meeting', 'The show', 'The lesson'])} "
                f"{pick(['leaves', 'starts', 'ends', 'arrives'])} at "
                f"{pick(['half past ', 'quarter to ', 'quarter past ', ''])}{number(1, 12)} on {pick(DAYS)}."
            ),
        ),
        (
            150,
            lambda: (
                f"{pick(['What is', 'Tell me', 'Show me', 'Do you know', 'I would like to know'])} "
                f"{pick(['the weather', 'the temperature', 'the traffic', 'the news', 'the time'])} "
                f"{pick(['in Paris', 'in London', 'in New York', 'for tomorrow', 'right now', 'at home'])}."
            ),
        ),
    ]
    return [make() for n_phrases, make in kinds for _ in range(n_phrases)]


def everyday_phrases(n_phrases: int, seed: int = 1) -> list[str]:
    """Return `n_phrases` of conversation, names, things and numbers read aloud."""
    choose, names = random.Random(seed), Names.from_faker()

    def number(low: int, high: int) -> str:
        return spoken_number(choose.randint(low, high), choose)

    kinds: list[Callable[[], str]] = [
        lambda: small_talk(choose),
        lambda: numbers_aloud(choose),
        lambda: named(choose, names, number),
        lambda: things(choose, number),
    ]
    return [choose.choices(kinds, [4, 2, 3, 3])[0]() for _ in range(n_phrases)]


def write_sentences(novels: Path, corpus: Path | None, vocabulary: Path, out: Path, n_everyday: int) -> None:
    """Write usable sentences of novels, corpus and templates as rows of source, text, phonemes, each phonemised."""
    from hibari import Hibari

    with gzip.open(novels, "rt", encoding="utf-8") as file:
        rows = [line.split("\t") for line in file.read().splitlines()]
    rows = [row for row in rows if not any(book in row[0] for book in HELD_OUT_BOOKS) and build_sentence(*row)]
    counts = Counter(word for _, text, _ in rows for word in words_of(text))
    common = [word for word, _ in counts.most_common(1500) if len(word) > 2]
    texts = [("template", phrase) for seed in range(3) for phrase in phrases(common, seed)]
    texts += [("everyday", phrase) for phrase in everyday_phrases(n_everyday)]
    if corpus:
        texts += [(kind, text) for kind, _, text in (line.partition("\t") for line in corpus.read_text().splitlines())]
    phonemiser, known = Hibari(threads=1), json.loads(vocabulary.read_text())["vocab"]
    n_rows: Counter[str] = Counter({"novels": len(rows)})
    for source, text in texts:
        phonemes = " ".join(phonemiser.phonemize(text))
        usable = len(phonemes) < MOST_PHONEMES and all(symbol in known for symbol in phonemes)
        if usable and build_sentence(source, text, phonemes):
            rows.append([source, text, phonemes])
            n_rows[source] += 1
    print(dict(n_rows))
    with lzma.open(out, "wt", preset=6, encoding="utf-8") as file:
        file.write("\n".join("\t".join(row) for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="sentences of novels, free texts and templates with their phonemes")
    parser.add_argument("novels", type=Path, help=".tsv.gz of book, sentence, phonemes")
    parser.add_argument("vocabulary", type=Path, help="the synthesiser's vocab.json")
    parser.add_argument("out", type=Path, help=".tsv.xz of source, text, phonemes")
    parser.add_argument("--corpus", type=Path, help=".tsv of kind and sentence")
    parser.add_argument("--everyday", type=int, default=30000, help="phrases of conversation, names and numbers")
    options = parser.parse_args()
    write_sentences(options.novels, options.corpus, options.vocabulary, options.out, options.everyday)


if __name__ == "__main__":
    main()
