import re

import pytest

from app.api.page import FILES

KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
NAMES = sorted(path.name for path in FILES.iterdir())


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in NAMES)])
def test_files_come_with_their_rules(running, path):
    response = running.client.get(path)
    assert response.status_code == 200
    kind = KINDS[path.rpartition(".")[2].strip("/") or "html"]
    assert response.headers["Content-Type"].partition(";")[0] == kind
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_an_unchanged_file_is_not_sent_again(running):
    first = running.client.get("/page/page.js")
    again = running.client.get("/page/page.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_is_not_there_is_a_problem(running):
    for path in ("/page/none.js", "/page/../main.py", "/page/%2e%2e/main.py", "/page/"):
        body = running.client.get(path).json()
        assert (body["status"], body["title"]) == (404, "Not Found"), path
    assert running.client.post("/page/page.js").json()["status"] == 405


def test_the_page_is_small_and_all_its_own():
    sizes = {path.name: path.stat().st_size for path in FILES.iterdir()}
    assert sum(sizes.values()) < 100_000
    for path in FILES.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|\burl\(", text), path
        assert not re.search(r"innerHTML|outerHTML|document\.write|\beval\(", text), path


def test_every_file_that_the_page_names_is_there():
    page = (FILES / "index.html").read_text()
    named = re.findall(r'(?:src|href)="page/([^"]+)"', page)
    for script in FILES.glob("*.js"):
        named += re.findall(r'from "\./([^"]+)"', script.read_text())
    assert set(named) | {"index.html"} == set(NAMES)


def test_the_page_answers_those_who_only_look_whether_it_is_there(running):
    response = running.client.head("/")
    assert (response.status_code, response.content) == (200, b"")
