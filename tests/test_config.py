"""config.py: every setting is read somewhere."""

import ast
import dataclasses

import pytest
from test_house import MODULES

import config
from config import CodecConfig, DataSettings, DPOConfig, EvaluateConfig, Guidance, ModelConfig, Preset
from config import SampleConfig, SingSettings, TrainConfig
from lyrics.__main__ import AlignConfig, AlignSettings, CheckConfig, ConvertConfig, PlanConfig, PlanSettings
from lyrics.__main__ import ReadSettings
from songs.pairs import PairsConfig
from tools.bench import BenchConfig
from tools.prepare import PrepareConfig
from tools.shards import InspectConfig, ValidateConfig
from tools.solvers import SolversConfig

# The names that hold an object of a settings class: reading an attribute of such a name uses the setting.
# Then the modules that may read it.
HOLDERS = {SampleConfig: ({"cfg"}, "sample songs"), SingSettings: ({"cfg"}, "sample songs support.hub style"),
           TrainConfig: ({"cfg"}, "train songs support.log support.checkpoint support.stream"),
           DPOConfig: ({"cfg"}, "train_dpo"),
           EvaluateConfig: ({"cfg"}, "evaluate songs.listeners support.hub style"),
           DataSettings: ({"data"}, "data support"), PairsConfig: ({"cfg"}, "songs.pairs"),
           BenchConfig: ({"cfg"}, "tools.bench"), PrepareConfig: ({"cfg"}, "tools.prepare support.hub style"),
           InspectConfig: ({"cfg"}, "tools.shards"), ValidateConfig: ({"cfg"}, "tools.shards"),
           SolversConfig: ({"cfg"}, "tools.solvers"),
           PlanSettings: ({"settings"}, "lyrics.plan"), AlignSettings: ({"settings"}, "lyrics.align"),
           **{cls: ({"cfg"}, "lyrics") for cls in (ReadSettings, PlanConfig, CheckConfig, ConvertConfig,
                                                   AlignConfig)},
           ModelConfig: ({"config", "model"}, ""), CodecConfig: ({"config", "codec", "c"}, ""),
           Guidance: ({"guidance", "default"}, ""), Preset: ({"preset"}, "")}


def reads(module: str) -> set[tuple[str, str]]:
    """(holder, attribute) of every attribute that a module reads: `self.cfg.seed` gives ("cfg", "seed")."""
    nodes = ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return {(getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr) for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("cls", HOLDERS)
def test_no_dead_settings(cls):
    """The original's heads, dropout and seed can be set and change nothing."""
    holders, places = HOLDERS[cls]
    modules = [name for name in MODULES if name != "config" and (
        not places or any(name == place or name.startswith(f"{place}.") for place in places.split()))]
    used = {attribute for name in modules for holder, attribute in reads(name) if holder in holders}
    assert cls.__annotations__.keys() - used == set()        # its own, not those of its base


def test_every_settings_class_is_scanned():
    """A new dataclass in config.py would escape the scan above."""
    classes = {c for c in vars(config).values() if isinstance(c, type) and dataclasses.is_dataclass(c)}
    assert classes <= HOLDERS.keys()
