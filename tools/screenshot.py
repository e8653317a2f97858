"""The screenshot of the management page: `task_queue` while two of the tutorial's workers work.

    make screenshot

A headless Chromium looks at the page of the queue, on the broker that a run of the tests would get.
"""

import contextlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from urllib.parse import urlsplit

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from testbed.broker import Broker
from testbed.running import parser_with_broker, running_by_hand
from testbed.terminal import REPOSITORY
from testbed.waiting import wait_until
from tools.demo import Stage
from tools.pictures import save

PICTURE = REPOSITORY / "part_2" / "management.png"
WORKERS, TASKS = 2, 6

# In CSS pixels, each of which becomes two in the picture.
_WIDTHS, _HEIGHT = range(1000, 1400, 20), 1400
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # which root cannot have; it sees no other page than the broker's
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-device-scale-factor=2",
)


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Yield a headless Chromium that knows nothing of anybody's own."""
    options = webdriver.ChromeOptions()
    if chromium := shutil.which("chromium"):
        options.binary_location = chromium  # else chromedriver looks for Chrome
    with tempfile.TemporaryDirectory() as user_data:
        for option in (*_OPTIONS, f"--user-data-dir={user_data}"):
            options.add_argument(option)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        driver = webdriver.Chrome(options, service)
        try:
            yield driver
        finally:
            driver.quit()


@contextlib.contextmanager
def workers_at_work(broker: Broker) -> Iterator[None]:
    """Have each worker at a task, and more tasks wait, until the end."""
    with contextlib.ExitStack() as terminals:
        stage = Stage(broker, terminals)
        workers = [stage.type(n, "part_2/worker.py").expect_ready() for n in range(1, WORKERS + 1)]
        for number in range(TASKS):
            # A minute and a half each, so that none is done before the picture is taken.
            stage.type_and_wait(WORKERS + 1, "part_2/new_task.py", f"Task {number + 1}{90 * '.'}")
        for worker in workers:
            worker.expect("Received")
        yield


def photograph(driver: webdriver.Chrome, management_url: str) -> Image.Image:
    """Return the page of `task_queue`, from the top down to its consumers.

    Raises:
        TimeoutError: It does not show what it should.
    """
    login = urlsplit(management_url)
    address = f"{login.scheme}://{login.hostname}:{login.port}"
    driver.get(address)
    form = wait_until(lambda: driver.find_elements(By.TAG_NAME, "form"), "the login form")[0]
    form.find_element(By.NAME, "username").send_keys(login.username or "")
    form.find_element(By.NAME, "password").send_keys(login.password or "")
    form.submit()
    wait_until(lambda: driver.find_elements(By.ID, "logout"), "the login")
    driver.get(f"{address}/#/queues")
    link = "return [...document.links].map(a => a.href).find(h => h.endsWith('/task_queue'))"
    driver.get(wait_until(lambda: driver.execute_script(link), "task_queue among the queues"))

    # The page writes itself anew every few seconds, so each look at it is a single script.
    def shows(pattern: str) -> bool:
        text = driver.execute_script("return document.body.innerText")
        return re.search(pattern, text, re.DOTALL) is not None

    counts = rf"Ready\s+{TASKS - WORKERS}\s+Unacked\s+{WORKERS}\s+Total\s+{TASKS}\s"
    wait_until(lambda: shows(counts), "the counts of task_queue", seconds=60)
    # The chart's figures come a little later than those beside it.
    wait_until(lambda: shows(rf"\s{TASKS}\.0\s"), "the chart", seconds=60)
    wait_until(lambda: shows(rf"Consumers \({WORKERS}\)"), "the consumers", seconds=60)
    # The page's header, longer in later versions, covers the title where it breaks.
    tops = "return [...document.querySelectorAll('#tabs li')].map(tab => tab.offsetTop)"
    for width in _WIDTHS:
        driver.set_window_size(width, _HEIGHT)
        if len(set(driver.execute_script(tops))) == 1:
            break
    heading = "[...document.querySelectorAll('h2')].find(h => h.innerText.startsWith('Consumers'))"
    driver.execute_script(f"{heading}.click()")
    wait_until(lambda: shows(rf"(ctag.*){{{WORKERS}}}"), "the consumers' list")
    still = "return $(':animated').length == 0"
    wait_until(lambda: driver.execute_script(still), "the list to have unfolded")
    bottom = driver.execute_script(f"return {heading}.parentElement.getBoundingClientRect().bottom")
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        return image.crop((0, 0, image.width, round(2 * bottom)))


def main() -> None:
    """Take the screenshot; exit with 1 where there is no broker with a management page."""
    arguments = parser_with_broker(__doc__).parse_args()
    with running_by_hand(arguments.broker) as broker:
        if not broker.has_management:
            sys.exit(f"{broker.description} has no management page")
        with workers_at_work(broker), browser() as driver:
            image = photograph(driver, broker.management_url)
        save(image, PICTURE, RabbitMQ=broker.version)
    print(PICTURE.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
