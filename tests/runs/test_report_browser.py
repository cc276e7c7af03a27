"""The page in a real browser: it opens from disk without errors or requests, sorts its tables, and fits the screen."""

from types import SimpleNamespace

import browsers
import pytest
from report_folders import make_run, make_sweep, write_history

from unskew.runs.report import write_report

pytestmark = pytest.mark.browser

HOSTILE = ("<script>document.title='x'</script>", "a" * 300, "猫" * 60, "owl", "$x$ & y", "bee")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
COLUMN = "(column) => [...document.querySelectorAll('#cost tbody tr')].map((row) => row.cells[column].textContent)"
# The contrast of a colour to a background, by WCAG 2.2: the ratio of relative luminances.
CONTRAST = """([selector, property]) => {
  const pixel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const luminance = (colour) => {
    pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const text = luminance(getComputedStyle(document.querySelector(selector))[property]);
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
}"""


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a sweep on two datasets, of which one has hostile class names."""
    folder = tmp_path_factory.mktemp("report")
    for made in make_sweep(folder / "output", classnames=HOSTILE):
        write_history(made)
    make_run(folder / "output", dataset="birds")
    write_report([folder / "output"], folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def open_page(chromium, report):
    """A function that opens the report with a width and a colour scheme; it collects errors and requests."""
    opened = []

    def open_it(width=1440, scheme="light"):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        seen = SimpleNamespace(page=page, errors=[], requests=[])
        page.on("console", lambda message: seen.errors.append(message.text))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(report.as_uri())
        opened.append(page)
        return seen

    yield open_it
    for page in opened:
        page.close()


def test_the_page_opens_without_errors_and_requests_only_its_own_file(open_page, report):
    seen = open_page()
    seen.page.wait_for_timeout(200)
    assert seen.errors == [] and seen.page.title() == "unskew report"
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]
    assert seen.page.locator("svg").count() >= 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows_and_text_is_readable(width, scheme, open_page):
    page = open_page(width, scheme).page
    assert page.evaluate(OVERFLOW) == 0
    for selector, colour in (("body", "color"), (".caption", "color"), ("td a", "color"), ("svg text", "fill")):
        assert page.evaluate(CONTRAST, [selector, colour]) >= 4.5, selector
    assert page.evaluate(CONTRAST, [".plot path[style*='--series-0']", "stroke"]) >= 3
    sizes = page.eval_on_selector_all("svg text", "(all) => all.map((text) => text.getBoundingClientRect().height)")
    assert min(size for size in sizes if size) >= 9


def test_a_click_on_a_header_sorts_by_number_and_a_filter_hides_rows(open_page):
    page = open_page().page
    header = page.locator("#cost th button", has_text="accuracy")
    for reverse in (False, True):
        header.click()
        shown = [float(text) for text in page.evaluate(COLUMN, 5)]
        assert shown == sorted(shown, reverse=reverse) and len(set(shown)) > 3
    page.locator("#cost th button", has_text="trainer").click()
    names = page.evaluate(COLUMN, 2)
    assert names == sorted(names) and len(set(names)) == 3
    page.locator("#cost input").fill("coop 16")
    assert page.locator("#cost tbody tr:visible").count() == 2


def test_the_print_has_light_colours_and_all_rows(open_page):
    page = open_page(730, "dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    assert page.locator("nav").is_hidden()
