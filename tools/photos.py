"""Gather the training photographs from Debian packages, and make the shipped examples again.

Knows which packages hold real photographs, how to read them without installing anything (`.deb`
by `dpkg`, Qt resource files by the parser below), who made each picture and under which licence,
what each shows, and which are held out of training. It does not know how crops or low-quality
pairs are drawn for training, and it never decides anything at random.
"""

import argparse
import hashlib
import json
import logging
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from imaging.degrade import synthesise

log = logging.getLogger(__name__)

Split = Literal["train", "held_out"]

BUILD = Path("build")  # downloads and extracted packages; ignored by git
LONGEST_SIDE = 2048  # pixels
CAMERA_SIDE = 2560  # pixels; longer files come straight from a camera and are soft at pixel level
PLAIN_SHARE = 0.6  # of the border pixels
PLAIN_TOLERANCE = 12  # of 255, from the border's median
NEAR_DUPLICATE_BITS = 8  # of the 64 of a difference hash

KINDS = (
    "animal",
    "bird",
    "building",
    "fish",
    "food",
    "insect",
    "landscape",
    "object",
    "person",
    "plant",
    "sky",
    "statue",
    "street",
    "texture",
    "tool",
    "vehicle",
    "water",
)


class PhotosError(Exception):
    """No photograph could be gathered."""


class PackageUnavailableError(Exception):
    """A package could not be fetched or opened."""


@dataclass(frozen=True)
class Shelf:
    """A folder of one package, with the photographs picked from it."""

    package: str
    prefix: str  # of the ids
    folder: str  # in the package or, with `resource`, in its Qt resources
    copyright_folder: str  # the same folder as debian/copyright names it
    picks: str  # a line each: file, kind, words; a star before the file holds it out
    resource: bool = False


@dataclass(frozen=True)
class Pick:
    """One line of a shelf."""

    file: str
    kind: str
    words: tuple[str, ...]  # most important first
    split: Split


@dataclass(frozen=True)
class Record:
    """One photograph on disk: a row of `index.json`."""

    id: str
    file: str
    package: str
    version: str
    source_path: str
    author: str
    licence: str
    credit_note: str | None
    split: Split
    kind: str
    words: tuple[str, ...]
    caption: str | None
    plain_background: bool
    width: int
    height: int
    sha256: str  # of the PNG file


GCOMPRIS = "gcompris-qt-data"
ACTIVITIES = "gcompris/src/activities/"
OPENCV = "usr/share/doc/opencv-doc/examples/"
LIBJXL = "usr/share/libjxl-testdata/"

# Chosen and described by eye, on contact sheets; drawings, renders, icons and paintings are left
# out, and of stereo pairs one half. A general class, the kind, follows the first word in
# `Record.words`, unless it is the first word. Held out, and starred, are whole packages of test
# pictures, every tenth picture of `erase` and `monuments`, and what becomes an example.
SHELVES = (
    Shelf(
        GCOMPRIS,
        "erase",
        ACTIVITIES + "erase/resource/",
        "src/activities/erase/resource/",
        """
        *alpaca.webp animal alpaca, grass
        bee.webp insect bee, flower
        butterfly.webp insect butterfly, flower
        calf.webp animal cow, grass
        camels.webp animal camel, sand
        caterpillar.webp insect caterpillar, leaf
        chamaeleon.webp animal chameleon, branch
        cheetah.webp animal big cat, grass
        crab.webp animal crab, sand
        dolphin.webp animal dolphin, sea
        *flying_fox.webp animal bat, leaf
        gibbon.webp animal ape, branch
        giraffe.webp animal giraffe, tree
        goat.webp animal goat, rock
        gorilla.webp animal ape, leaf
        gosling.webp bird goose, grass
        heron.webp bird heron
        horse.webp animal horse, mountain
        kingfisher.webp bird kingfisher, branch
        kitten.webp animal cat, wood
        *long_nosed_monkey.webp animal monkey, leaf
        macaque.webp animal monkey
        meerkats.webp animal meerkat
        northern_harrier.webp bird bird of prey
        nubian_ibex.webp animal goat, grass
        penguin.webp bird penguin, grass
        pika.webp animal pika, rock
        red_panda.webp animal panda, branch
        rhinoceros.webp animal rhinoceros, sand
        spoonbills.webp bird spoonbill, water
        *squirrel.webp animal squirrel, tree
        swans.webp bird swan, water
        toucan.webp bird toucan, branch
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "farm",
        ACTIVITIES + "explore_farm_animals/resource/animals/",
        "src/activities/explore_farm_animals/resource/animals/",
        """
        cat.webp animal cat
        chicken.webp bird chicken, grass
        cow.webp animal cow, grass
        dog.webp animal dog, grass
        duck.webp bird duck, water
        horse.webp animal horse, grass
        owl.webp bird owl, branch
        pig.webp animal pig, grass
        sheep.webp animal sheep, grass
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "animals",
        ACTIVITIES + "explore_world_animals/resource/animals/",
        "src/activities/explore_world_animals/resource/animals/",
        """
        bison.webp animal bison, grass
        chameleon.webp animal chameleon, leaf
        crocodile.webp animal crocodile, water
        dragon.webp animal lizard, rock
        giraffe.webp animal giraffe, tree
        hedgehog.webp animal hedgehog, grass
        jaguar.webp animal big cat, rock
        kangaroo.webp animal kangaroo
        koala.webp animal koala, tree
        lemur.webp animal lemur, grass
        *moose.webp animal moose, tree
        narwhal.webp animal whale, sea
        panda.webp animal panda, tree
        polar_bear.webp animal bear, snow
        scarlet_macaw.webp bird parrot
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "monuments",
        ACTIVITIES + "explore_monuments/resource/",
        "src/activities/explore_monuments/resource/",
        """
        *egypt/bentPyramid.webp building pyramid, desert
        egypt/greatPyramidOfGiza.webp building pyramid, desert
        egypt/meidumPyramid.webp building pyramid, desert
        egypt/redPyramid.webp building pyramid, desert
        france/arlesAmphitheater.webp building amphitheatre, sky
        france/chateaudeChambord.webp building castle, grass
        france/chateaudeChenonceau.webp building castle, river
        france/citedeCarcassonne.webp building castle, wall
        france/eiffelTower.webp building tower, sky
        france/montStMichel.webp building church, sky
        *france/palaisdesPapes.webp building palace, tower
        france/pontduGard.webp building bridge, river
        france/reimsCathedral.webp building church, sky
        france/rocamadour.webp building church, cliff
        germany/aulaPalatina.webp building church, tree
        germany/berlinCathedral.webp building church, dome
        germany/brandenburgGate.webp building gate, column
        germany/neuschwansteinCastle.webp building castle, forest
        germany/schwerinPalace.webp building castle, lake
        germany/trierImperialBaths.webp building ruins, grass
        *germany/wormsCathedral.webp building church, tower
        india/ajantaCave.webp landscape cave, cliff
        india/charminar.webp building tower
        india/gatewayofIndia.webp building gate, night
        india/goldenTemple.webp building temple, lake
        india/greatStupa.webp building dome
        india/hawaMahal.webp building palace
        india/konarkSunTemple.webp building temple, ruins
        india/mysorePalace.webp building palace, dome
        india/qutubMinar.webp building tower, sky
        *india/rangGhar.webp building building, grass
        india/victoriaMemorial.webp building palace, dome
        usa/cabrillo.webp statue statue, sky
        usa/canyondeChelly.webp landscape canyon, river
        usa/castillodeSanMarcos.webp building fort
        usa/castleClinton.webp building fort, tree
        usa/fortSumter.webp building fort, grass
        usa/georgeWashingtonBirthplace.webp building house, tree
        usa/lincolnMemorial.webp building temple, column
        usa/mountRushmore.webp statue statue, mountain
        *usa/navajo.webp building ruins, cliff
        usa/statueofLiberty.webp statue statue, sky
        wonders/chichenItza.webp building pyramid, grass
        wonders/christTheRedeemer.webp statue statue, mountain
        wonders/colosseum.webp building amphitheatre, sky
        wonders/greatWallofChina.webp building wall, mountain
        wonders/machuPicchu.webp landscape mountain, ruins
        wonders/petra.webp building temple, cliff
        wonders/tajMahal.webp building mausoleum, dome
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "music",
        ACTIVITIES + "explore_world_music/resource/music/",
        "src/activities/explore_world_music/resource/music/",
        """
        africa.webp object drum, grass
        america.webp object drum, guitar
        australia.webp person musician
        ireland.webp person musician, stage
        italy.webp person musician, stage
        japan.webp person crowd, night
        mexico.webp person musician, guitar
        middleeast.webp object lute
        orchestra.webp person musician, stage
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "sea",
        ACTIVITIES + "clickgame/resource/",
        "src/activities/clickgame/resource/",
        """
        sea1.webp water sea, sand
        sea2.webp water sea, rock
        sea3.webp water sea, coral
        sea4.webp water sea, coral
        sea5.webp water sea, cave
        sea6.webp water sea
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "details",
        ACTIVITIES + "details/resource/image/",
        "src/activities/details/resource/image/",
        """
        Chenonceau_background.webp building castle, river
        EgeskovSlotSpejling_background.webp building castle, lake
        EilanDonanCastle_background.webp building castle, lake
        FanoeWindmill_background.webp building windmill, sky
        GizahPyramids_background.webp building pyramid, desert
        Louvre_2007_02_24_c_background.webp building palace, night
        NDP_background.webp building church, night
        Nagoya_background.webp building castle, wall
        Neuschwanstein_background.webp building castle, forest
        OperaSidney_background.webp building opera house, night
        TajMahal_background.webp building mausoleum, dome
        TourEiffel_background.webp building tower, sky
        TowerBridgeLondon_background.webp building bridge, night
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "fishes",
        ACTIVITIES + "categorization/resource/images/fishes/",
        "src/activities/categorization/resource/images/fishes/",
        """
        fish1.webp fish fish
        fish2.webp fish fish, rock
        fish3.webp fish fish
        fish4.webp fish fish
        fish5.webp fish fish, coral
        fish6.webp fish fish
        fish7.webp fish fish, sand
        fish9.webp fish fish
        fish10.webp fish fish, coral
        fish11.webp fish fish
        fish12.webp fish fish, sand
        fish13.webp fish fish, coral
        fish14.webp fish fish, coral
        fish15.webp fish fish
        fish16.webp fish fish, sand
        fish18.webp fish fish
        fish19.webp fish fish, rock
        fish20.webp fish fish, rock
        fish21.webp fish fish, sand
        fish22.webp fish fish, rock
        fish23.webp fish fish, rock
        fish24.webp fish fish, coral
        fish25.webp fish goldfish
        fish26.webp fish fish, coral
        fish27.webp fish fish, sand
        fish28.webp fish fish, sea
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "buildings",
        ACTIVITIES + "categorization/resource/images/monuments/",
        "src/activities/categorization/resource/images/monuments/",
        """
        IndiaGate.webp building gate, tree
        arcDeTriomphe.webp building gate, sky
        bayterek.webp building tower, sky
        brandenburgGate.webp building gate, column
        burj.webp building tower, sky
        cathedral.webp building church, tower
        christTheRedeemer.webp statue statue, sky
        colosseum.webp building amphitheatre, sky
        eiffelTower.webp building tower, sky
        empireState.webp building tower, sky
        greatPyramid.webp building pyramid, desert
        greatWall.webp building wall, mountain
        jucheTower.webp building tower, sky
        kutubMinar.webp building tower, sky
        leMusee.webp building palace, cloud
        leaningTowerOfPisa.webp building tower
        monument1.webp building dome, sky
        monument2.webp building ruins, column
        monument3.webp building church, tower
        mountRushmore.webp statue statue, mountain
        operaHouse.webp building opera house, sea
        parthenon.webp building temple, column
        statueOfLiberty.webp statue statue, sky
        tajMahal.webp building mausoleum, dome
        usCapitol.webp building palace, dome
        victoriaMemorial.webp statue statue, cloud
        zimniPalace.webp building palace, night
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "household",
        ACTIVITIES + "categorization/resource/images/others/",
        "src/activities/categorization/resource/images/others/",
        """
        baseball.webp object ball
        blackslate.webp object blackboard
        bucket.webp object bucket
        buffetset.webp object cup, plate
        bulb.webp object lamp
        chair.webp object chair
        cup.webp object cup, plate
        erasers.webp object eraser
        igloo.webp building igloo, snow
        knife.webp object cutlery
        pan.webp object pan
        pencil.webp object pencil
        pillow.webp object pillow
        plate.webp object plate
        spoons.webp object cutlery
        volleyball.webp object ball
        weighingMachine.webp object scales
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "renewable",
        ACTIVITIES + "categorization/resource/images/renewable/",
        "src/activities/categorization/resource/images/renewable/",
        """
        dam1.webp building dam, water
        dam2.webp building dam, river
        dam3.webp building dam, river
        dam4.webp water river, tree
        dam5.webp water dam, river
        geothermal.webp landscape steam, lake
        solar1.webp object solar cooker
        solar2.webp object solar cooker
        solar3.webp object solar cooker
        solar4.webp object solar panel, sky
        solar5.webp object solar panel, tree
        solar6.webp object solar panel, roof
        solar7.webp object solar panel, grass
        solar8.webp object solar panel, roof
        *windmill.webp building windmill, sky
        windmill1.webp building windmill, sea
        windmill2.webp building windmill, sky
        windmill3.webp building windmill, sky
        windmill4.webp building windmill, grass
        windmill5.webp building windmill, grass
        windmill6.webp building wind turbine, sky
        windmill7.webp building windmill
        windmill8.webp building windmill, sky
        windmill9.webp building windmill, sky
        windmill11.webp building windmill, tree
        windmill12.webp building windmill, grass
        windmill13.webp building windmill, river
        windmill14.webp building windmill
        windmill15.webp building windmill, cloud
        """,
        resource=True,
    ),
    Shelf(
        GCOMPRIS,
        "tools",
        ACTIVITIES + "categorization/resource/images/tools/",
        "src/activities/categorization/resource/images/tools/",
        """
        cuttingTool.webp tool pliers
        hammer1.webp tool hammer
        hammer2.webp tool hammer
        hammer3.webp tool hammer
        hammer4.webp tool hammer
        hammer5.webp tool hammer
        hammer6.webp tool hammer
        hammer7.webp tool hammer
        hammer8.webp tool hammer
        hammer9.webp tool hammer
        measuringTape1.webp tool measuring tape
        measuringTape2.webp tool measuring tape
        measuringTape3.webp tool measuring tape
        measuringTape4.webp tool measuring tape
        measuringTape5.webp tool measuring tape
        measuringTape6.webp tool measuring tape
        multimeter1.webp tool multimeter
        multimeter2.webp tool multimeter
        multimeter3.webp tool multimeter
        nailCutter.webp tool nail clipper
        plier1.webp tool pliers
        plier2.webp tool pliers
        plier3.webp tool pliers
        plier4.webp tool pliers
        scissors1.webp tool scissors
        scissors2.webp tool scissors
        scissors3.webp tool scissors
        scissors4.webp tool scissors
        screwDriver.webp tool screwdriver
        screwDriver1.webp tool screwdriver
        screwDriver2.webp tool screwdriver
        screwDriver3.webp tool screwdriver
        sickle.webp tool sickle
        sideCutter1.webp tool pliers
        spray.webp object spray bottle
        tweezer.webp tool tweezers
        wrench.webp tool wrench
        """,
        resource=True,
    ),
    Shelf(
        "lomiri-wallpapers-16.04",
        "lomiri",
        "usr/share/backgrounds/",
        "16.04/",
        """
        Bridge_by_Sander_Klootwijk.jpg building bridge, sky
        Dragonfly_by_Bolly.jpg insect dragonfly, leaf
        Picture_0B_by_freespace.jpg food fruit
        Picture_1A_by_freespace.jpg tool paintbrush
        *Wine_by_Jakkub_Mede.jpg object table, drum
        aitzgorri_by_Aitzol_Berasategi.jpg landscape mountain, grass
        free_by_Peter_Nerlich.jpg object toy, lamp
        *friends_by_Aitzol_Berasategi.jpg animal dog, house
        greentock_by_Peter_Nerlich.jpg object clock
        *life_by_Aitzol_Berasategi.jpg water river, rock
        *picosdeeuropa_by_Aitzol_Berasategi.jpg landscape mountain, grass
        *seeding_by_Clements_Engelhardt.jpg plant flower, grass
        sunset_by_Aitzol_Berasategi.jpg landscape sunset, mountain
        """,
    ),
    Shelf(
        "lomiri-wallpapers-20.04",
        "lomiri",
        "usr/share/backgrounds/",
        "20.04/",
        """
        Kleiber_by_Lukas_Baubkus.jpg bird bird, tree
        """,
    ),
    Shelf(
        "plasma-workspace-wallpapers",
        "plasma",
        "usr/share/wallpapers/",
        "",
        """
        BytheWater/contents/images/2560x1600.jpg water lake, pier
        ColdRipple/contents/images/2560x1600.jpg water lake, pier
        ColorfulCups/contents/images/2560x1600.jpg object cup
        DarkestHour/contents/images/2560x1600.jpg water lake, night
        EveningGlow/contents/images/2560x1600.jpg vehicle boat, lake
        FallenLeaf/contents/images/2560x1600.jpg plant leaf
        Grey/contents/images/2560x1600.jpg building building
        Kite/contents/images/2560x1600.jpg sky cloud
        OneStandsOut/contents/images/2560x1600.jpg plant moss, leaf
        Path/contents/images/2560x1600.jpg landscape forest, tree
        summer_1am/contents/images/2560x1600.jpg water lake, sunset
        """,
    ),
    Shelf(
        "mate-backgrounds",
        "mate",
        "usr/share/backgrounds/mate/nature/",
        "nature/",
        """
        Aqua.jpg water drop
        Blinds.jpg plant leaf
        Dune.jpg plant grass, sea
        FreshFlower.jpg plant flower
        Garden.jpg plant flower
        GreenMeadow.jpg plant grass
        LadyBird.jpg insect ladybird, flower
        RainDrops.jpg plant leaf, drop
        Storm.jpg sky cloud, road
        TwoWings.jpg plant flower
        Wood.jpg texture wood
        YellowFlower.jpg plant flower
        """,
    ),
    Shelf(
        "palapeli-data",
        "palapeli",
        "usr/share/palapeli/collection/",
        "puzzles/",
        """
        *castle-maintenon.jpg building castle, grass
        *cincinnati-bridge.jpg building bridge, night
        *citrus-fruits.jpg food fruit
        *european-honey-bee.jpg insect bee, flower
        *panther-chameleon-female.jpg animal chameleon, branch
        """,
    ),
    Shelf(
        "tuxpaint-data",
        "tuxpaint",
        "usr/share/tuxpaint/templates/",
        "templates/",
        """
        burnt_bark.jpg texture bark
        cliff.jpg landscape cliff, sky
        corn_maze.jpg plant maize, leaf
        jellyfish.jpg animal jellyfish, sea
        lighthouse.jpg building tower, sky
        mossy_bark.jpg texture bark
        mossy_log.jpg plant moss, wood
        mudstone.jpg texture rock
        ocean_splash.jpg water sea, drop
        ocean_waves.jpg water sea
        redwoods_above.jpg plant tree, forest
        rocks.jpg texture rock
        sheep.jpg landscape grass, sheep
        spiders_web.jpg object spider web, leaf
        sun_behind_clouds.jpg sky cloud
        sun_behind_leaves.jpg plant leaf
        trees_above.jpg plant tree, sky
        trees_at_dusk.jpg plant tree, sunset
        wool_mill_machine.jpg object machine
        """,
    ),
    Shelf(
        "opencv-doc",
        "opencv",
        OPENCV,
        "samples/",
        """
        *data/aero1.jpg landscape town, forest
        *data/aero3.jpg landscape town, forest
        *data/aloeL.jpg plant leaf, pot
        *data/apple.jpg food fruit
        *data/baboon.jpg animal monkey
        *data/board.jpg object circuit board
        *data/building.jpg building building, tree
        *data/butterfly.jpg insect butterfly, leaf
        *data/chicky_512.png animal dog
        *data/ela_original.jpg object book
        *data/fruits.jpg food fruit
        *data/graf1.png texture wall
        *data/home.jpg building church, sky
        *data/leuvenA.jpg street house, road
        *data/messi5.jpg person person, ball
        *data/orange.jpg food fruit
        *data/rubberwhale1.png object toy
        *data/squirrel_cls.jpg animal squirrel, branch
        *data/stuff.jpg object pencil
        *alphamat/input_images/plant.jpg plant leaf, pot
        *dnn_superres/butterfly.png insect butterfly
        *hfs/data/000.jpg bird bird
        *hfs/data/001.jpg water lake, forest
        *hfs/data/002.jpg plant tree, grass
        *text/scenetext01.jpg street sign, car
        *text/scenetext02.jpg street sign, night
        *text/scenetext03.jpg building sign
        *text/scenetext04.jpg building wall, tree
        *text/scenetext05.jpg street fence, road
        *text/scenetext06.jpg street house
        """,
    ),
    Shelf(
        "libjxl-testdata",
        "libjxl",
        LIBJXL,
        "",
        """
        *external/wesaturate/500px/cvo9xd_keong_macan_srgb8.png landscape cliff, lake
        *external/wesaturate/500px/tmshre_riaphotographs_srgb8.png plant flower
        *external/wesaturate/500px/u76c0g_bliznaca_srgb8.png plant flower, branch
        *jxl/flower/flower.png plant flower
        *jxl/hdr_room.png building room, chair
        """,
    ),
    Shelf(
        "python3-skimage",
        "skimage",
        "usr/lib/python3/dist-packages/skimage/data/",
        "skimage/data/",
        """
        *astronaut.png person astronaut
        *brick.png texture wall
        *camera.png person person, camera
        *chelsea.png animal cat
        *coffee.png object cup, plate
        *coins.png object coin
        *grass.png texture grass
        *gravel.png texture rock
        *motorcycle_left.png vehicle motorcycle
        *rocket.jpg vehicle rocket, night
        """,
    ),
)

# Ids read better without the photographer or the size in the file name.
ID_NOISE = re.compile(r"_by_.*|/contents/images/.*|_background$|_srgb8$|_2007_02_24_c|_512$|_left$")
ID_NAMES = {
    "libjxl-external-wesaturate-500px-cvo9xd-keong-macan": "libjxl-cliff",
    "libjxl-external-wesaturate-500px-tmshre-riaphotographs": "libjxl-tulips",
    "libjxl-external-wesaturate-500px-u76c0g-bliznaca": "libjxl-blossom",
    "libjxl-jxl-flower-flower": "libjxl-flower",
    "libjxl-jxl-hdr-room": "libjxl-room",
}

# The copyright file speaks of the code only; the docstrings of `skimage.data` name the pictures.
SKIMAGE_CREDITS = {
    "astronaut.png": ("NASA", "public-domain"),
    "brick.png": ("CC0 Textures", "CC0-1.0"),
    "camera.png": ("Lav Varshney", "CC0-1.0"),
    "chelsea.png": ("Stéfan van der Walt", "CC0-1.0"),
    "coffee.png": ("Rachel Michetti", "CC0-1.0"),
    "coins.png": ("Brooklyn Museum Collection", "no known copyright restrictions"),
    "grass.png": ("Linolafett", "CC0-1.0"),
    "gravel.png": ("CC0 Textures", "CC0-1.0"),
    "motorcycle_left.png": ("Middlebury 2014 stereo benchmark", "not stated"),
    "rocket.jpg": ("SpaceX", "public-domain"),
}

# Shelves where the copyright file still names what an earlier release had under the same file
# name: seen by eye, as with a shark's page beside a picture of a wrasse. Of `renewable`,
# `windmill.webp` was checked: it shows the mill that its stanza names.
REUSED_NAMES = ("erase", "fishes", "buildings", "household", "renewable", "tools")

# Pixels (left, top, right, bottom) kept of pictures with a black frame.
KEPT = {
    "monuments-usa-george-washington-birthplace": (14, 6, 984, 662),
    "tuxpaint-mossy-bark": (0, 30, 640, 450),
}


def picks(shelf: Shelf) -> list[Pick]:
    """The lines of a shelf, in order.

    Raises:
        ValueError: a line names no known kind.
    """
    found = []
    for line in shelf.picks.strip().splitlines():
        file, kind, *rest = line.split(maxsplit=2)
        if kind not in KINDS:
            raise ValueError(f"{file} has the kind {kind!r}; expected one of {', '.join(KINDS)}")
        named = [word.strip() for word in "".join(rest).split(",") if word.strip()]
        words = tuple(dict.fromkeys([*named[:1], kind, *named[1:]]))
        split: Split = "held_out" if file.startswith("*") else "train"
        found.append(Pick(file.removeprefix("*"), kind, words, split))
    return found


def photo_id(shelf: Shelf, file: str) -> str:
    """The id of a photograph: shelf and file, lower case, hyphens."""
    stem = ID_NOISE.sub("", file.rsplit(".", 1)[0] if "/contents/" not in file else file)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", f"{shelf.prefix}-{stem}")
    slug = re.sub(r"[^a-z0-9]+", "-", spaced.lower()).strip("-")
    return ID_NAMES.get(slug, slug)


def split_table() -> dict[str, Split]:
    """Which split each photograph belongs to, by id; the same on every machine."""
    return {photo_id(shelf, pick.file): pick.split for shelf in SHELVES for pick in picks(shelf)}


def unpack(package: str, build: Path) -> tuple[Path, str]:
    """Download and extract a Debian package, unless that was done before.

    Returns:
        The folder of its files, and its version.

    Raises:
        PackageUnavailableError: apt or dpkg is missing, or the download failed.
    """
    downloads, root = build / "deb", build / "x" / package
    downloads.mkdir(parents=True, exist_ok=True)
    if not (archives := sorted(downloads.glob(f"{package}_*.deb"))):
        _run(["apt-get", "download", package], cwd=downloads)
        archives = sorted(downloads.glob(f"{package}_*.deb"))
    if not archives:
        raise PackageUnavailableError(f"apt-get downloaded nothing for {package}")
    version = _run(["dpkg-deb", "--field", str(archives[-1]), "Version"]).strip()
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as partial:
            _run(["dpkg", "-x", str(archives[-1]), f"{partial}/files"])
            Path(partial, "files").rename(root)
    return root, version


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise PackageUnavailableError(f"{command[0]} is not on this machine")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PackageUnavailableError(f"{' '.join(command[:2])} failed: {last}")
    return done.stdout


def read_rcc(data: bytes) -> dict[str, bytes]:
    """All files of a Qt resource file, by path; versions 1 to 3, plain or zlib.

    Source: the layout written by Qt's `rcc`, big-endian throughout. Zstandard entries (flag 4)
    are left out: no file of gcompris-qt-data 3.1 uses it, and Python 3.11 cannot read it.

    Raises:
        ValueError: `data` is no Qt resource file, or of a later version.
    """
    if data[:4] != b"qres":
        raise ValueError(
            f"expected a Qt resource file, which begins with b'qres', not {data[:4]!r}"
        )
    version, tree, blobs, names = struct.unpack_from(">4I", data, 4)
    if version not in (1, 2, 3):
        raise ValueError(f"expected a Qt resource file of version 1 to 3, not {version}")
    node_size = 14 if version == 1 else 22  # from version 2 on, with a time of change
    files: dict[str, bytes] = {}

    def visit(index: int, parents: tuple[str, ...]) -> None:
        at = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", data, at)
        if flags & 2:  # a folder; the root has no name
            path = (*parents, _rcc_name(data, names + name_offset)) if index else parents
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                visit(child, path)
            return
        (start,) = struct.unpack_from(">I", data, at + 10)  # after territory and language
        (length,) = struct.unpack_from(">I", data, blobs + start)
        blob = data[blobs + start + 4 : blobs + start + 4 + length]
        path = (*parents, _rcc_name(data, names + name_offset))
        if flags & 4:
            log.warning("%s is compressed with Zstandard and left out", "/".join(path))
            return
        # Four bytes of uncompressed length come before the zlib stream.
        files["/".join(path)] = zlib.decompress(blob[4:]) if flags & 1 else blob

    visit(0, ())
    return files


def _rcc_name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")  # after a hash


@dataclass(frozen=True)
class Stanza:
    """One `Files:` stanza of a DEP-5 copyright file."""

    globs: tuple[str, ...]
    holders: tuple[str, ...]
    licence: str


def parse_copyright(text: str) -> list[Stanza]:
    """The `Files:` stanzas of a debian/copyright in the DEP-5 format, in order."""
    stanzas = []
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in block.splitlines():
            if field := re.match(r"([A-Za-z-]+):(.*)", line):
                lines = fields.setdefault(field[1].lower(), [])
                lines.append(field[2].strip())
            elif line[:1].isspace():
                lines.append(line.strip())
        if "files" in fields:
            globs = tuple(" ".join(fields["files"]).split())
            holders = tuple(filter(None, map(_holder, fields.get("copyright", []))))
            stanzas.append(Stanza(globs, holders, fields.get("license", [""])[0]))
    return stanzas


def _holder(line: str) -> str:
    line = re.sub(r"<[^>]*>|https?://\S+|, all rights reserved.*", "", line)
    line = re.sub(r"^[\s\d,.–-]*(by )?|[,\s]*\b(19|20)\d\d\b[\s.]*$", "", line)
    return line.strip(" ,;.´").replace('"', "")


def glob_matches(glob: str, path: str) -> bool:
    """Whether a DEP-5 glob matches a path; `*` and `?` match slashes too."""
    pattern = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in glob)
    return re.fullmatch(pattern, path, re.DOTALL) is not None


def credit(stanzas: Sequence[Stanza], path: str) -> Stanza | None:
    """The stanza that speaks of `path`: the last that matches.

    A stanza may name the picture as it was before the release converted it, so any raster
    extension counts.
    """
    stem = path.rsplit(".", 1)[0]
    names = {path, *(f"{stem}.{ext}" for ext in ("jpg", "jpeg", "png", "webp"))}
    matches = [s for s in stanzas if any(glob_matches(g, n) for g in s.globs for n in names)]
    return matches[-1] if matches else None


def board_captions(files: Mapping[str, bytes]) -> dict[str, str]:
    """The first sentence gcompris tells about a picture, by the picture's path."""
    captions = {}
    for path, text in files.items():
        if "/resource/board/board" not in path or not path.endswith(".qml"):
            continue
        for entry in text.decode().split('"image":')[1:]:
            said = re.search(r'"text":\s*qsTr\("((?:[^"\\]|\\.)*)"\)', entry)
            shown = re.search(r'"image2":\s*"qrc:/([^"]+)"', entry)
            if said and shown:
                plain = re.sub(r"\s+", " ", said[1].replace('\\"', '"').replace("\\n", " "))
                captions[shown[1]] = re.split(r"(?<=[.!?])\s", plain.strip())[0]
    return captions


def as_photo(data: bytes, keep: tuple[int, int, int, int] | None = None) -> Image.Image:
    """A file's picture as RGB, upright, in sRGB, at most `LONGEST_SIDE` pixels long."""
    with Image.open(BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
    image = _in_srgb(image)
    if keep:
        image = image.crop(keep)
    if max(image.size) > CAMERA_SIDE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=None)
    return image


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.pop("icc_profile", None)
    if not profile or image.mode != "RGB":
        return image.convert("RGB")
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    name = ImageCms.getProfileDescription(source).strip()
    if "sRGB" in name or name == "c2":  # c2 is a tiny sRGB
        return image
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return converted


def has_plain_background(image: Image.Image) -> bool:
    """Whether most of the border has one colour, as behind an object in a catalogue."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    edge = max(2, min(image.size) // 32)
    border = np.concatenate(
        [
            pixels[:edge].reshape(-1, 3),
            pixels[-edge:].reshape(-1, 3),
            pixels[:, :edge].reshape(-1, 3),
            pixels[:, -edge:].reshape(-1, 3),
        ]
    )
    away = np.abs(border - np.median(border, axis=0)).max(axis=1)
    return float((away <= PLAIN_TOLERANCE).mean()) >= PLAIN_SHARE


def difference_hash(image: Image.Image) -> int:
    """64 bits that hardly change when a picture is resized or recompressed (dHash)."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(records: Sequence[Record], out: Path) -> list[tuple[str, str, int]]:
    """Pairs of photographs that look the same, with the bits their hashes differ in."""
    hashes = []
    for record in records:
        with Image.open(out / record.file) as image:
            hashes.append(difference_hash(image))
    pairs = []
    for i, one in enumerate(hashes):
        for j in range(i):
            if (bits := (one ^ hashes[j]).bit_count()) <= NEAR_DUPLICATE_BITS:
                pairs.append((records[j].id, records[i].id, bits))
    return pairs


@dataclass(frozen=True)
class Package:
    """An extracted package: its files, and what it says about them."""

    name: str
    version: str
    root: Path
    stanzas: tuple[Stanza, ...]
    resources: Mapping[str, bytes]
    captions: Mapping[str, str]

    def read(self, path: str) -> bytes:
        return self.resources[path] if path in self.resources else (self.root / path).read_bytes()


def open_package(name: str, build: Path = BUILD) -> Package:
    """Fetch a package if need be, and read what the shelves need of it.

    Raises:
        PackageUnavailableError: it could not be fetched.
    """
    root, version = unpack(name, build)
    text = (root / "usr/share/doc" / name / "copyright").read_text(encoding="utf-8")
    resources: dict[str, bytes] = {}
    for path in sorted(root.glob("usr/share/**/*.rcc")):
        resources.update(read_rcc(path.read_bytes()))
    captions = board_captions(resources)
    return Package(name, version, root, tuple(parse_copyright(text)), resources, captions)


def gather(out: Path, *, build: Path = BUILD) -> list[Record]:
    """Write every photograph and `index.json` into `out`; what is there already is kept.

    A package that cannot be fetched is skipped, unless an earlier run recorded its photographs.

    Raises:
        PhotosError: no package could be fetched.
    """
    out.mkdir(parents=True, exist_ok=True)
    index = out / "index.json"
    earlier = read_index(index) if index.exists() else []
    records: list[Record] = []
    for name in dict.fromkeys(shelf.package for shelf in SHELVES):
        try:
            package = open_package(name, build)
        except PackageUnavailableError as error:
            log.warning("Skipped %s: %s.", name, error)
            records += [record for record in earlier if record.package == name]
            continue
        made = 0
        for shelf in SHELVES:
            for pick in picks(shelf) if shelf.package == name else ():
                try:
                    records.append(_gather_one(package, shelf, pick, out))
                    made += 1
                except FileNotFoundError:
                    log.warning("%s %s has no %s.", name, package.version, shelf.folder + pick.file)
        log.info("%s %s: %d photographs", name, package.version, made)
    if not records:
        raise PhotosError("No package could be fetched: this needs apt, dpkg and a network.")
    write_index(records, index)
    return records


def _gather_one(package: Package, shelf: Shelf, pick: Pick, out: Path) -> Record:
    source_path = shelf.folder + pick.file
    name = photo_id(shelf, pick.file)
    target = out / f"{name}.png"
    if not target.exists():
        partial = target.with_suffix(".partial")
        as_photo(package.read(source_path), KEPT.get(name)).save(partial, "PNG")
        partial.rename(target)
    with Image.open(target) as image:
        width, height = image.size
        plain = has_plain_background(image)
    author, licence, note = _credit_of(package, shelf, pick.file)
    return Record(
        id=name,
        file=target.name,
        package=package.name,
        version=package.version,
        source_path=source_path,
        author=author,
        licence=licence,
        credit_note=note,
        split=pick.split,
        kind=pick.kind,
        words=pick.words,
        caption=package.captions.get(source_path),
        plain_background=plain,
        width=width,
        height=height,
        sha256=hashlib.sha256(target.read_bytes()).hexdigest(),
    )


def _credit_of(package: Package, shelf: Shelf, file: str) -> tuple[str, str, str | None]:
    if package.name == "python3-skimage":
        return *SKIMAGE_CREDITS[file], "from the docstrings of skimage.data"
    stanza = credit(package.stanzas, shelf.copyright_folder + file)
    if stanza is None:
        return "not stated", "not stated", None
    few = stanza.holders[:4]
    author = "; ".join(few) + (" and others" if len(stanza.holders) > len(few) else "")
    note = None
    stem = shelf.copyright_folder + file.rsplit(".", 1)[0]
    if not any(glob.rsplit(".", 1)[0] == stem for glob in stanza.globs):
        note = "blanket statement for many files; the photographer may not be among the names"
    elif shelf.prefix in REUSED_NAMES and file != "windmill.webp":
        note = "the package's statement may be about the picture an earlier release had here"
    return author, stanza.licence, note


def write_index(records: Sequence[Record], path: Path) -> None:
    """Write the records as JSON, in one step, so that a reader never sees half of it."""
    rows = [asdict(record) for record in records]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)


def read_index(path: Path) -> list[Record]:
    """The records of an `index.json`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Record(**{**row, "words": tuple(row["words"])}) for row in rows]


@dataclass(frozen=True)
class Example:
    """One low-quality picture for the app."""

    name: str
    photo: str  # id
    title: str
    box: tuple[int, int, int, int]  # of the photograph: left, top, right, bottom
    gt_size: tuple[int, int] | None  # width, height; None: the crop itself is the input
    seed: int = 0  # of the degradation


EXAMPLE_SCALE = 4
EXAMPLE_PRESET = "mild"
# Seeds chosen by eye for a middling loss: what is there can still be told, fine detail is gone.
EXAMPLES = (
    Example("dandelions", "lomiri-seeding", "Seeding", (150, 40, 1174, 808), (512, 384), 8),
    Example("stream", "lomiri-life", "Life", (420, 240, 1188, 1008), (512, 512), 18),
    Example("dogs", "lomiri-friends", "Friends", (240, 310, 816, 1078), (384, 512), 3),
    Example(
        "mountain",
        "lomiri-picosdeeuropa",
        "Picos de Europa",
        (512, 120, 1632, 960),
        (640, 480),
        4,
    ),
    Example("astronaut", "skimage-astronaut", "Eileen Collins", (96, 0, 352, 256), (256, 256), 11),
    Example("coffee", "skimage-coffee", "Coffee", (60, 8, 572, 392), (512, 384), 6),
    Example("cat", "skimage-chelsea", "Chelsea the cat", (60, 8, 444, 296), (384, 288), 24),
    Example("windmill", "renewable-windmill", "Chesterton Windmill", (60, 60, 188, 220), None),
)


def make_examples(photos: Path, out: Path) -> None:
    """Write the examples and their `LICENCES.md` into `out`, the same bytes every time.

    Args:
        photos: a folder that `gather` filled.
        out: gets `<name>.png` and, where the reference is known, `<name>_gt.png`, 4 × its size.
    """
    out.mkdir(parents=True, exist_ok=True)
    records = {record.id: record for record in read_index(photos / "index.json")}
    rows = []
    for example in EXAMPLES:
        record = records[example.photo]
        with Image.open(photos / record.file) as opened:
            crop = opened.crop(example.box)
        files = {f"{example.name}.png": "cropped; not degraded, the photograph is that small"}
        if example.gt_size is None:
            crop.save(out / f"{example.name}.png", optimize=True)
        else:
            gt = crop.resize(example.gt_size, Image.Resampling.LANCZOS)
            lq = synthesise(np.asarray(gt), EXAMPLE_PRESET, example.seed, scale=EXAMPLE_SCALE)[0]
            gt.save(out / f"{example.name}_gt.png", optimize=True)
            Image.fromarray(lq).save(out / f"{example.name}.png", optimize=True)
            shrunk = "" if crop.size == gt.size else " and shrunk"
            files = {
                f"{example.name}.png": f"cropped{shrunk}, then blurred, shrunk by "
                f"{EXAMPLE_SCALE}, noise and JPEG added (seed {example.seed})",
                f"{example.name}_gt.png": f"cropped{shrunk}",
            }
        rows += [
            f"| {file} | {example.title} | {record.author} | {_licence_link(record.licence)} "
            f"| {record.package} {record.version} | {done} |"
            for file, done in files.items()
        ]
    (out / "LICENCES.md").write_text(LICENCES_HEAD + "\n".join(rows) + "\n", encoding="utf-8")


LICENCES_HEAD = f"""# The example pictures and their licences

All come from photographs held out of training. `*_gt.png` is the reference, `*.png` of the same
name the low-quality input made from it by `imaging.degrade`, preset "{EXAMPLE_PRESET}".
`python -m tools.photos --examples` makes every file here again. "Package" is the Debian package
the photograph was taken from, with its version.

| File | Title | Author | Licence | Package | What was done |
| --- | --- | --- | --- | --- | --- |
"""
LICENCE_PAGES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
}


def _licence_link(licence: str) -> str:
    page = LICENCE_PAGES.get(licence)
    return f"[{licence}]({page})" if page else licence


def main() -> None:
    """Gather the photographs, or make the examples again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/photos"))
    parser.add_argument(
        "--examples", action="store_true", help="also write examples/ from what was gathered"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        records = gather(arguments.out)
    except PhotosError as error:
        raise SystemExit(str(error)) from error
    splits = Counter(record.split for record in records)
    log.info("%d photographs in %s: %s", len(records), arguments.out, dict(splits))
    split_of = {record.id: record.split for record in records}
    for one, other, bits in near_duplicates(records, arguments.out):
        if split_of[one] != split_of[other]:
            log.warning("%s and %s look alike (%d bits) across the split.", one, other, bits)
    if arguments.examples:
        make_examples(arguments.out, Path("examples"))


if __name__ == "__main__":
    main()
