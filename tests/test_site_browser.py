"""The documentation site in a real browser, opened from disk and from a local server."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import browsers
import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Numerator and denominator of each fraction: the first must be above the second.
FRACTIONS = """(all) => all.map((fraction) => [...fraction.children].map((part) => part.getBoundingClientRect()))
  .map(([above, below]) => [above.height > 0, above.bottom <= below.top + 1])"""


def build(*words):
    """Run the command of scripts/docs.sh with more arguments."""
    if importlib.util.find_spec("mkdocs") is None:
        browsers.missing("the Python package mkdocs-material")
    command = re.search(r'"\$PYTHON" (-m mkdocs .*) "\$@"', (ROOT / "scripts" / "docs.sh").read_text(encoding="utf-8"))[
        1
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *command.split(), *words]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build("--site-dir", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def server(site):
    """The address of a local server of the site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(params=["disk", "server"])
def address(request, site):
    return site.as_uri() if request.param == "disk" else request.getfixturevalue("server")


@pytest.fixture
def page(chromium):
    """A page of the browser; ``page.errors`` has the lines of its console, ``page.urls`` its requests."""
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(120_000)  # on a busy computer
    page.errors, page.urls = [], []
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.urls.append(request.url))
    yield page
    page.close()


@pytest.mark.parametrize("target", ["#no-such-section", "no-such-page.md"])
def test_a_broken_link_is_an_error(target, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Start\n\n[broken]({target})\n", encoding="utf-8")
    settings = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    done = build("--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0 and target in done.stderr


def test_a_reader_gets_from_the_start_to_an_explanation_and_its_formulas(page, address):
    page.goto(f"{address}/index.html")
    page.locator(".md-tabs").get_by_text("Explanations").click()
    page.locator(".md-sidebar--primary").get_by_text("The estimator", exact=True).click()
    assert page.url.endswith("/ESTIMATOR.html") and page.locator("h1").inner_text().startswith("The estimator")
    fractions = page.locator("math mfrac").evaluate_all(FRACTIONS)
    assert len(fractions) > 10 and all(all(fraction) for fraction in fractions)
    assert page.locator("math[display=block]").count() >= 8
    text = page.locator("article").inner_text()
    assert "\\frac" not in text and "$" not in text


def test_the_search_finds_a_term(page, address):
    page.goto(f"{address}/index.html")
    page.locator(".md-search__input").click()
    page.locator(".md-search__input").type("fingerprint")
    results = page.locator(".md-search-result__item a")
    results.first.wait_for()
    hrefs = results.evaluate_all("(all) => all.map((link) => link.href)")
    assert any("/RUNS.html" in href for href in hrefs)
    results.first.click()
    page.wait_for_load_state()
    assert "fingerprint" in page.locator("article").inner_text().lower()
    assert page.errors == [] and [url for url in page.urls if not is_inside(url, address)] == []


def test_all_pages_load_only_files_of_the_site_and_fit_a_telephone(page, site):
    page.set_viewport_size({"width": 390, "height": 800})
    names = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    assert {"index.html", "FAQ.html", "GLA.html", "reference/commands.html", "reference/config.html"} <= set(names)
    too_wide = []
    for name in names:
        page.goto(f"{site.as_uri()}/{name}")
        too_wide += [name] if page.evaluate(OVERFLOW) else []
    assert page.errors == [] and too_wide == []
    assert [url for url in page.urls if not is_inside(url, site.as_uri())] == []


def test_no_page_names_a_script_style_or_font_of_another_host(site):
    """Also those that a browser would load only later, or in another state of the page."""
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>")
    for path in site.rglob("*.html"):
        assert loads.findall(path.read_text(encoding="utf-8")) == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path


def is_inside(url, address):
    return url.startswith((f"{address}/", "data:", "blob:", "about:"))
