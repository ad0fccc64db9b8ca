# ruff: noqa: SIM905
"""Everyday phrases by grammar: small talk with contractions and fillers, names, addresses, numbers read aloud, requests.

Novels and dictionaries have none of these. Names come from the package Faker. Every call draws a new phrase.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

OPENERS = "well,um,uh,you know,I mean,so,okay,right,look,actually,yeah,no,oh,hey,honestly,anyway,sure,hm".split(",")
HEDGES = "kind of,sort of,probably,just,really,maybe,almost,definitely,basically,still,already,never".split(",")
CLOSERS = ",,,,right,you know,I guess,though,or something,if that's okay,by the way,then,again,too,I think".split(",")
SUBJECTS = (
    "I'm,you're,he's,she's,we're,they're,it's,that's,I've been,we've been,they've been,I'll be,you'll be,she'll be,"
    "I was,he was,we were,they were,there's nobody,who's,where's,what's,isn't he,aren't you,wasn't she,weren't they"
).split(",")
DOINGS = (
    "going to the store,coming over later,working on it,looking for the keys,waiting for the bus,thinking about dinner,"
    "trying to fix the car,moving next month,running late,getting tired,talking to the doctor,taking the kids to school,"
    "learning how to drive,watching the game,cleaning the kitchen,writing it down,stuck in traffic,ready to leave,"
    "happy with it,sorry about that,afraid of dogs,sick of waiting,good at math,late again,out of milk,on the phone,"
    "at the office,in the garden,under the table,over there,not feeling well,allowed to park here,supposed to be here"
).split(",")
CLAUSES = (
    "I don't know,I didn't see it,I can't hear you,we couldn't find it,she doesn't like it,he won't listen,"
    "they haven't called,you shouldn't worry,it wouldn't start,I wouldn't do that,I'd rather stay home,we'd better go,"
    "you'd think so,he'd never say that,let's get something to eat,let's try again,what do you want,where did you go,"
    "how long does it take,when does it start,why would you say that,who told you that,what time is it,how much is it,"
    "could you say that again,can you help me with this,would you like some tea,do you want to come,did you get my message,"
    "have you seen my phone,is it raining,are you sure,that makes sense,that's a good idea,it depends,I forgot,"
    "I'll think about it,thanks a lot,"
    "no problem,never mind,take care,see you soon,I gotta go,I'm gonna call you back,I wanna go home"
).split(",")
LINKS = "and,but,because,so,and then,or,until,when,if,which is why,even though,since".split(",")
LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()
DIGITS = "oh one two three four five six seven eight nine zero".split()
OBJECTS = (
    "apple,arrow,basket,battery,blanket,bottle,bridge,bucket,candle,carpet,chair,clock,coat,cup,curtain,desk,drawer,engine,"
    "fence,garden,glass,hammer,hat,jacket,kettle,knife,ladder,lamp,letter,mirror,napkin,needle,oven,pencil,pillow,plate,"
    "pocket,rope,ruler,scissors,shelf,shirt,shoe,sink,soap,spoon,suitcase,towel,tray,umbrella,wallet,wheel,window,yard"
).split(",")
PLACES = (
    "on the left,on the right,near the door,next to the bank,across the street,behind the house,at the airport,upstairs,"
    "down the hall,in the basement,by the river,at the corner,in front of the station,on the second floor,outside"
).split(",")
UNITS = "miles,feet,inches,pounds,ounces,gallons,degrees,percent,meters,kilometers,grams,liters,seconds,years".split(
    ","
)
ADJECTIVES = (
    "old,new,small,large,heavy,light,broken,expensive,cheap,clean,dirty,empty,full,wet,dry,soft,hard,bright,dark,quiet,"
    "loud,round,square,long,short,wide,narrow,green,blue,yellow,purple,orange,white,black,brown,gray,pink,silver"
).split(",")


@dataclass
class Names:
    """Lists of names to draw from."""

    first: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    city: list[str] = field(default_factory=list)
    street: list[str] = field(default_factory=list)
    company: list[str] = field(default_factory=list)
    job: list[str] = field(default_factory=list)

    @classmethod
    def from_faker(cls, n_names: int = 3000, seed: int = 1) -> "Names":
        from faker import Faker

        fake = Faker("en_US")
        fake.seed_instance(seed)
        makers: list[Callable[[], str]] = [
            fake.first_name,
            fake.last_name,
            fake.city,
            fake.street_name,
            fake.company,
            lambda: fake.job().lower(),
        ]
        return cls(*(sorted({make() for _ in range(n_names)}) for make in makers))


def small_talk(choose: random.Random) -> str:
    """Return one or two spoken clauses with fillers."""

    def clause() -> str:
        if choose.random() < 0.5:
            return choose.choice(CLAUSES)
        hedge = choose.choice(HEDGES) + " " if choose.random() < 0.4 else ""
        return f"{choose.choice(SUBJECTS)} {hedge}{choose.choice(DOINGS)}"

    parts = [clause()]
    if choose.random() < 0.5:
        parts.append(f"{choose.choice(LINKS)} {clause()}")
    if choose.random() < 0.5:
        parts.insert(0, choose.choice(OPENERS))
    closer = choose.choice(CLOSERS)
    return ", ".join([*parts, closer] if closer else parts) + choose.choice("..?")


def numbers_aloud(choose: random.Random) -> str:
    """Return digits in groups, as in telephone and account numbers."""
    groups = choose.choice([(3, 4), (3, 3, 4), (4, 4), (5,), (2, 2, 2), (6,), (1, 2), (8,), (3,), (4,)])
    low = choose.choice([0, 1])
    spoken = [" ".join(choose.choice(DIGITS[low:]) for _ in range(n)) for n in groups]
    intro = choose.choice(["", "", "", "call ", "my number is ", "the code is ", "room ", "extension ", "flight "])
    return intro + ", ".join(spoken)


def named(choose: random.Random, names: Names, number: Callable[[int, int], str]) -> str:
    """Return a phrase with a name, a place, a company or an address."""
    pick = choose.choice
    person = f"{pick(names.first)} {pick(names.last)}" if choose.random() < 0.6 else pick(names.first)
    patterns = [
        f"My name is {person}.",
        f"This is {person} from {pick(names.company)}.",
        f"Could I speak to {person}, please?",
        f"{person} works as a {pick(names.job)} in {pick(names.city)}.",
        f"I live at {number(1, 999)} {pick(names.street)}, {pick(names.city)}.",
        f"We drove from {pick(names.city)} to {pick(names.city)} in {number(2, 19)} hours.",
        f"Have you met {person}?",
        f"{pick(names.first)}, {pick(names.first)} and {pick(names.first)} are {pick(DOINGS)}.",
        f"Send it to {person} at {pick(names.company)}.",
        f"{pick(names.first)} said {pick(CLAUSES)}.",
        f"{pick(names.city)}.",
        f"{person}.",
    ]
    return pick(patterns)


def things(choose: random.Random, number: Callable[[int, int], str]) -> str:
    """Return a phrase about objects, places, measures and letters."""
    pick = choose.choice
    patterns = [
        f"The {pick(ADJECTIVES)} {pick(OBJECTS)} is {pick(PLACES)}.",
        f"Put the {pick(OBJECTS)} and the {pick(OBJECTS)} {pick(PLACES)}.",
        f"I bought {number(2, 60)} {pick(ADJECTIVES)} {pick(OBJECTS)}s.",
        f"It's about {number(2, 990)} {pick(UNITS)}.",
        f"{number(1, 99)} point {pick(DIGITS[1:])} {pick(UNITS)}.",
        f"Is that your {pick(ADJECTIVES)} {pick(OBJECTS)}?",
        f"There's a {pick(OBJECTS)} {pick(PLACES)}, next to the {pick(ADJECTIVES)} {pick(OBJECTS)}.",
        f"{pick(ADJECTIVES)} {pick(OBJECTS)}",
        f"{pick(OBJECTS)}, {pick(OBJECTS)}, {pick(OBJECTS)}",
        " ".join(pick(LETTERS) for _ in range(choose.randint(2, 6))),
        f"{pick(LETTERS)} as in {pick(OBJECTS)}.",
    ]
    return pick(patterns)
