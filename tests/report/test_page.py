import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO

import pytest
import yaml
from PIL import Image
from rich.console import Console

from l2t_fast.errors import L2TFastError
from l2t_fast.report import build_report, results_table
from l2t_fast.report.style import DARK, LIGHT
from tests.report.fake_runs import ENVIRONMENT, fake_comparison, fake_run, run_config

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1}{2}$ {{ 7 * 7 }} [red]"


class Page(HTMLParser):
    """Everything in a page that matters here: tags, attributes, visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def read_page(folder) -> Page:
    return Page(build_report(folder).read_text(encoding="utf-8"))


def assert_self_contained(page: Page) -> None:
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith(("#", "data:image/")), (name, value)
        if not name.startswith("xmlns"):
            assert "://" not in value, (name, value)
        for address in re.findall(r"url\(([^)]*)\)", value):
            assert address.startswith("#"), address


def test_a_whole_comparison(tmp_path):
    folder = fake_comparison(
        tmp_path,
        accuracies={"scratch": [0.70, 0.71, 0.72], "fm": [0.80, 0.81, 0.82], "l2t-ww": [0.90, 0.91, 0.92]},
    )
    page = read_page(folder)
    assert_self_contained(page)
    assert "L2T-ww is clearly ahead: 91.0 % mean test accuracy, 10.0 points above FM (81.0 %)" in page.text
    assert "91.0 % 88.5 to 93.5 % 1.0 % 3" in page.text
    assert page.tags.count("svg") == 5
    conditions = (
        "digits; classes 5 to 9; training images a class: 10; 20 epochs; seeds 0, 1, 2; cpu (x86_64); PyTorch 2.14.1"
    )
    assert page.text.count(f"Conditions: {conditions}; commit 0123456789ab+changes.") == 5
    assert "pretrained here on digits, classes 0 to 4, 30 epochs, its own test accuracy 98.5 %" in page.text
    assert "lookahead_steps: 2" in page.text and "How to read this" in page.text
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "accuracy_curves.png",
        "results.png",
        "pair_weights_l2t-ww.png",
        "pair_weights_over_epochs_l2t-ww.png",
        "channel_weights_l2t-ww.png",
    }


def test_hostile_names_are_only_ever_text(tmp_path):
    config = run_config("l2t-ww", class_names=[HOSTILE], dataset=HOSTILE)
    config["source"]["model"] = HOSTILE
    for seed in (0, 1):
        folder = fake_run(
            tmp_path / "runs" / f"x-seed{seed}",
            "l2t-ww",
            seed,
            3,
            config=config,
            source_layers=[HOSTILE, "b"],
            target_layers=[HOSTILE, "c"],
        )
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"method": HOSTILE}))
        (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | {"device": HOSTILE, HOSTILE: {HOSTILE: 1}}))
    unfinished = fake_run(tmp_path / "runs" / "fm<b>-seed0", "fm", finished=False, config=config)
    (unfinished / "log.txt").write_text(HOSTILE)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    page = read_page(tmp_path)
    assert_self_contained(page)
    assert "fm<b>-seed0" in page.text
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7 * 7 }}" in page.text and "$\\frac{1}{2}$" in page.text
    assert {path.parent for path in tmp_path.glob("plots/**/*")} == {tmp_path / "plots"}
    console = Console(file=StringIO(), width=300)
    console.print(results_table(tmp_path))
    assert "[red]" in console.file.getvalue()


def test_unfinished_missing_and_nan_runs_are_said(tmp_path):
    fake_comparison(tmp_path, methods=("scratch", "fm"), seeds=(0, 1), epochs=4)
    shutil.rmtree(tmp_path / "runs" / "fm-seed1")
    fake_run(tmp_path / "runs" / "fm-seed1", "fm", 1, 4, finished=False)
    shutil.rmtree(tmp_path / "runs" / "scratch-seed1")
    fake_run(tmp_path / "runs" / "scratch-seed1", "scratch", 1, 4, test_accuracy=math.nan)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"seeds": [0, 1, 2]}))
    page = read_page(tmp_path)
    assert "2 of 4 runs have no result" in page.text
    assert "fm-seed1 (not finished: 2 of 4 epochs)" in page.text
    assert "scratch-seed1 (finished without a test accuracy)" in page.text
    assert "2 of the 6 runs that the comparison asks for have not started" in page.text
    assert "No method is clearly ahead" in page.text and "every method ran with one seed" in page.text
    assert "epoch 4 done" in page.text


def test_nothing_finished(tmp_path):
    fake_run(tmp_path / "runs" / "l2t-ww-seed0", "l2t-ww", epochs=1, finished=False)
    page = read_page(tmp_path)
    assert "No run has a test accuracy yet" in page.text
    assert page.tags.count("svg") == 3


def test_one_run_alone(tmp_path):
    page = read_page(fake_run(tmp_path / "l2t-ww-seed4", "l2t-ww", 4))
    assert "Run of L2T-ww" in page.text
    assert "one seed, so without an interval" in page.text
    assert page.tags.count("svg") == 5


def test_a_run_with_nothing_but_its_result(tmp_path):
    folder = fake_run(tmp_path / "fm-seed0")
    for name in ("config.yaml", "environment.json", "log.txt", "metrics.csv"):
        (folder / name).unlink()
    page = read_page(folder)
    assert page.tags.count("svg") == 1 and "the run has no curve" in page.text


def test_runs_that_differ_in_their_conditions_say_so(tmp_path):
    fake_run(tmp_path / "runs" / "fm-seed0", "fm", 0)
    folder = fake_run(tmp_path / "runs" / "fm-seed1", "fm", 1)
    other = {"device": "cuda:0", "device_name": "NVIDIA H100"}
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | other))
    assert "differs between runs: cpu (x86_64); cuda:0 (NVIDIA H100)" in read_page(tmp_path).text


def test_building_again_replaces_the_page(tmp_path):
    folder = fake_run(tmp_path / "fm-seed0", epochs=2)
    first = build_report(folder).read_text()
    assert build_report(folder).read_text() == first


def render_text(table, width=120) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_table(tmp_path):
    fake_comparison(tmp_path, methods=("scratch", "fm"), seeds=(0, 1, 2), epochs=2)
    (tmp_path / "runs" / "fm-seed2" / "result.json").unlink()
    lines = [line for line in render_text(results_table(tmp_path)).splitlines() if "│" in line]
    assert "FM" in lines[0] and "2 of 3" in lines[0] and "20.5" in lines[0]
    assert "Scratch" in lines[1] and "21.0" in lines[1]


def test_errors_are_one_sentence(tmp_path):
    for build in (build_report, results_table):
        with pytest.raises(L2TFastError, match="no report can be made"):
            build(tmp_path)
    folder = fake_run(tmp_path / "fm-seed0", epochs=2)
    (folder / "plots").write_text("a file where the folder should be")
    with pytest.raises(L2TFastError, match="could not be written into"):
        build_report(folder)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to render the page with")
def test_in_a_browser(tmp_path):
    page = build_report(fake_comparison(tmp_path / "compare", seeds=(0, 1), epochs=5))
    assert_fits_and_shows(tmp_path, page, ("m1", "m3", "ink"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH to render the page with")
def test_a_sweep_fits_a_phone(tmp_path):
    methods = ("scratch", "fm-one-to-one")
    folder = fake_comparison(tmp_path / "compare", methods, (0,), 1, per_class=(50, 100, 250, 1000))
    page = build_report(folder)
    # All parts unfolded: they must fit as well.
    page.write_text(page.read_text().replace("<details", "<details open"))
    assert_fits_a_phone(tmp_path, page)


def assert_fits_and_shows(tmp_path, page, colors_drawn):
    """No wider than a phone, the theme's paper as the background, and these of its colours somewhere."""
    assert_fits_a_phone(tmp_path, page)
    for theme, colors in enumerate([DARK, LIGHT]):
        shot = tmp_path / f"{theme}.png"
        flags = f"--blink-settings=preferredColorScheme={theme}", f"--screenshot={shot}", "--window-size=1200,1400"
        run_chromium(tmp_path, page, *flags, "--hide-scrollbars")
        with Image.open(shot) as image:
            pixels = image.convert("RGB")
        assert pixels.getpixel((2, 2)) == tuple(bytes.fromhex(colors["paper"][1:]))
        drawn = {color for _, color in pixels.getcolors(1 << 24)}
        for name in colors_drawn:
            assert tuple(bytes.fromhex(colors[name][1:])) in drawn, name


def assert_fits_a_phone(tmp_path, page):
    """The sum that matters there: is anything wider than the screen outside the parts that scroll by themselves?"""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<body style='margin:0'><iframe id=f src='{page.as_uri()}' style='border:0;width:360px;height:700px' "
        "onload='document.title=\"width \"+f.contentDocument.documentElement.scrollWidth'></iframe>"
    )
    dom = run_chromium(tmp_path, frame, "--allow-file-access-from-files", "--hide-scrollbars", "--dump-dom")
    assert "<title>width 360</title>" in dom


def run_chromium(tmp_path, page, *flags: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout


def test_what_no_page_can_hold(tmp_path):
    """Halves of characters, control characters, numbers beyond all others."""
    comparison = fake_comparison(tmp_path, methods=("scratch", "l2t-ww"), seeds=(0,), epochs=2)
    run = comparison / "runs" / "l2t-ww-seed0"
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"python": "\ud800", "torch": "\x1b[2J"}))
    (run / "config.yaml").write_text('data: {per_class: 1.0e+308}\nlabel: "\\uD800"\n')
    for name in ("metrics.csv", "pair_weights.csv"):
        lines = (run / name).read_text().splitlines()
        fields = lines[1].split(",")
        lines[1] = ",".join([fields[0], *("1e400" if re.fullmatch(r"[-.\de]+", f) else f for f in fields[1:])])
        (run / name).write_text("\n".join(lines) + "\n")
    page = build_report(comparison).read_text(encoding="utf-8")
    assert "\x1b" not in page and "\N{REPLACEMENT CHARACTER}" in page
