"""Headless Chromium, as a reader of a page has it; without a network."""

from contextlib import contextmanager
from shutil import which

import pytest


@contextmanager
def chromium():
    """Yield a driver of Debian's Chromium; the test is skipped without one."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = which("chromium"), which("chromedriver")
    if not (browser and driver):
        pytest.skip("the browser test needs chromium and chromium-driver: scripts/debian.sh PYTHON draw")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()
