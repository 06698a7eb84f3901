"""The closed vocabulary of the rule-based questions: colours, numbers, relations, materials, nouns."""

from __future__ import annotations


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


COLORS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"),
    *("grey", "gold", "golden", "silver", "beige", "turquoise", "teal", "maroon", "violet", "cyan"),
)
# Distractors are plain colours, and never one that a person might also call the answer.
PLAIN_COLORS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
)
NEAR_COLORS = (
    {"gray", "grey", "silver"},
    {"gold", "golden", "yellow", "orange"},
    {"beige", "brown", "white"},
    {"turquoise", "teal", "cyan", "green", "blue"},
    {"maroon", "red", "brown"},
    {"violet", "purple", "pink"},
)
NUMBERS = {
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6},
    **{"seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12},
}
# How a caption says a material, and its name.
MATERIALS = {
    **{"wooden": "wood", "wood": "wood", "metal": "metal", "metallic": "metal", "glass": "glass"},
    **{"plastic": "plastic", "stone": "stone", "brick": "brick", "leather": "leather", "paper": "paper"},
    **{"fabric": "fabric", "concrete": "concrete", "rubber": "rubber", "ceramic": "ceramic"},
    **{"wicker": "wicker", "marble": "marble", "gravel": "gravel", "woolen": "wool"},
}
SHAPES = (
    "round",
    "square",
    "circular",
    "triangular",
    "rectangular",
    "oval",
    "pentagonal",
    "spherical",
    "cubic",
)
OPPOSITES = {
    **{"big": "small", "small": "big", "large": "small", "little": "big", "tiny": "huge", "huge": "tiny"},
    **{"giant": "tiny", "old": "new", "new": "old", "young": "old", "tall": "short", "short": "tall"},
    **{
        "long": "short",
        "modern": "old",
        "empty": "full",
        "full": "empty",
        "dirty": "clean",
        "clean": "dirty",
    },
    **{"open": "closed", "closed": "open", "wet": "dry", "dry": "wet", "happy": "sad", "sad": "happy"},
    **{"hot": "cold", "cold": "hot", "dark": "bright", "bright": "dark", "smiling": "frowning"},
}
OTHER_MODIFIERS = word_set(
    """
    beautiful busy calm colorful cute fancy fresh furry few group pair lone lovely main many modern other
    pretty several some sandy single striped stuffed various wild youth
    """
)

# How a caption says a relation, longest first, and the relation that it is.
RELATION_PHRASES = (
    *(("on the left side of", "left of"), ("on the right side of", "right of")),
    *(("to the left of", "left of"), ("to the right of", "right of")),
    *(("on the left of", "left of"), ("on the right of", "right of"), ("on top of", "on top of")),
    *(("in front of", "in front of"), ("right to", "right of"), ("left to", "left of")),
    *(("left of", "left of"), ("right of", "right of"), ("next to", "next to"), ("beside", "next to")),
    *(("above", "above"), ("over", "above"), ("below", "below"), ("beneath", "below"), ("under", "below")),
    *(("underneath", "below"), ("behind", "behind"), ("near", "near"), ("inside", "inside"), ("on", "on")),
)
OPPOSITE_RELATIONS = {
    **{"left of": "right of", "right of": "left of", "above": "below", "below": "above"},
    **{"in front of": "behind", "behind": "in front of", "on top of": "below"},
}
PLANE_RELATIONS = ("left of", "right of", "above", "below")

# Words that end a noun phrase.
STOPS = word_set(
    """
    a an the and or but of in on at to from by for with without into onto over under above below behind near
    inside left right next front beside between through across around along against during while when where
    which that who whose is are was were be been being has have had do does did its it his her their this
    these those there as up down out off top bottom middle than then not no very some so several he she they
    them
    you we i
    """
)
PREPOSITIONS = word_set(
    """
    on in at to with into through across around along against over near from by off
    """
)
COMMON_VERBS = word_set(
    """
    sit sits sat stand stands stood walk walks look looks hold holds wear wears ride rides play plays eat
    eats lie lies lay lays hang hangs wait waits run runs fly flies carry carries surrounded covered filled
    parked decorated made placed dressed seated posed depicting reads read shows show appears take takes
    taken seen sitting standing walking looking holding wearing riding playing eating lying hanging waiting
    running flying carrying
    """
)
NOT_VERBS = word_set(
    """
    building ring painting king ceiling clothing string wing spring morning evening thing
    """
)
# Said without an article.
MASS = word_set(
    """
    grass snow water rice pasta salad soup sushi bread cheese corn broccoli popcorn chocolate candy honey
    milk coffee tea beer wine fruit food furniture luggage jewelry fire
    """
)
# Any two of these may be the same one, so none is a wrong answer about another.
PEOPLE = word_set(
    """
    man woman boy girl child baby person people lady guy player skier surfer human astronaut
    """
)
# Nouns about the picture, not in it.
ABOUT_PICTURE = word_set(
    """
    photo photograph picture image painting drawing sketch portrait view shot close-up
    """
)

NOUNS: dict[str, tuple[str, ...]] = {
    "animal/human": _names(
        """
    man, woman, boy, girl, child, baby, person, lady, guy, player, skier, surfer, dog, puppy, cat, kitten,
    horse, cow, sheep, pig, goat, bird, duck, chicken, rooster, owl, eagle, penguin, parrot, swan, turkey,
    fish, shark, whale, dolphin, octopus, crab, turtle, frog, snake, lizard, crocodile, dinosaur, dragon,
    elephant, giraffe, zebra, lion, tiger, bear, teddy bear, panda, panda bear, koala, monkey, gorilla,
    kangaroo, rabbit, mouse, rat, hamster, squirrel, fox, wolf, deer, camel, hippo, rhino, bee, butterfly,
    ant, spider, snail, ladybug, robot, ghost, unicorn, astronaut, human
    """
    ),
    "food": _names(
        """
    apple, banana, orange, lemon, pear, peach, cherry, strawberry, grapes, watermelon, pineapple, kiwi,
    avocado, tomato, carrot, broccoli, corn, potato, mushroom, onion, pepper, eggplant, bread, cheese, egg,
    pizza, hamburger, sandwich, hot dog, french fries, taco, burrito, salad, soup, rice, noodles, pasta,
    sushi, cake, cupcake, pie, cookie, donut, doughnut, ice cream, chocolate, candy, honey, milk, coffee,
    tea, beer, wine, fruit, vegetables, food, popcorn, pancakes
    """
    ),
    "location": _names(
        """
    beach, forest, park, street, road, city, room, bathroom, kitchen, bedroom, living room, field, mountain,
    river, lake, ocean, sea, desert, garden, farm, store, restaurant, office, school, airport, station,
    parking lot, sidewalk, sky, snow, grass, water, island, waterway, driveway, enclosure
    """
    ),
    "object": _names(
        """
    car, truck, bus, train, bicycle, bike, motorcycle, airplane, plane, helicopter, boat, ship, rocket,
    tractor, skateboard, surfboard, snowboard, skis, traffic light, stop sign, fire hydrant, parking meter,
    bench, chair, couch, sofa, table, dining table, bed, desk, lamp, clock, vase, book, bookshelf, computer,
    laptop, keyboard, monitor, mouse, phone, cell phone, television, tv, remote, camera, radio, microwave,
    oven, toaster, sink, refrigerator, toilet, bathtub, mirror, window, door, wall, fence, building, house,
    castle, tower, bridge, tent, umbrella, handbag, backpack, suitcase, bag, hat, cap, crown, shirt,
    t-shirt, dress, jacket, coat, suit, tie, pants, jeans, shoe, boot, glove, sock, glasses, sunglasses,
    watch, ring, necklace, ball, basketball, soccer ball, football, baseball, baseball bat, tennis racket,
    tennis ball, frisbee, kite, balloon, guitar, piano, violin, trumpet, drum, bowl, cup, mug, plate, fork,
    knife, spoon, bottle, wine glass, glass, box, basket, candle, gift, key, lock, hammer, scissors, pencil,
    pen, toothbrush, hair drier, light bulb, star, moon, sun, cloud, rainbow, tree, flower, rose, leaf,
    cactus, plant, rock, fire, heart, flag, sign, light, toy, doll, statue, square, circle, triangle, cube,
    sphere, wave, board, stick, picture frame
    """
    ),
}
