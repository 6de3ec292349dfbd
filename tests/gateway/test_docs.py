"""``/docs``: all that ``/openapi.json`` tells stands on the page, and its commands are what a shell takes."""

from __future__ import annotations

import asyncio
import re
import shlex
from html import unescape

import httpx

from jupyter_dsserve.gateway.docs import Word, curl, fields_of, page, words_of
from jupyter_dsserve.gateway.openapi import document
from jupyter_dsserve.gateway.server import ROUTES, Gateway
from tests.support import Caller

DOCUMENT = document(ROUTES)
PAGE = page(DOCUMENT).decode()


def text(words: list[Word]) -> str:
    return "".join(word.text for word in words)


def test_every_route_and_every_type_stands_on_the_page_and_every_link_leads_to_one() -> None:
    ids = re.findall(r'<details id="([^"]+)"', PAGE)
    told = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert sorted(ids) == sorted([*told, *DOCUMENT["components"]["schemas"]])
    assert set(re.findall(r'href="#([^"]+)"', PAGE)) - {"routes"} <= set(ids)
    assert not re.search(r'(src|href)="(https?:)?//', PAGE), "nothing comes from elsewhere"


def test_what_documents_say_is_text_and_never_markup() -> None:
    answer = {"description": "<b>", "content": {"text/<i>": {"schema": {"type": "<u>"}}}}
    told = {"operationId": "x", "summary": "<s>", "tags": ["<t>"], "security": [], "responses": {"200": answer}}
    made = page({**DOCUMENT, "paths": {"/<p>": {"get": told}}, "components": {"schemas": {}}}).decode()
    for each in "bisutp":
        assert f"&lt;{each}&gt;" in made
    assert not re.search(r"<[bisutp]>", made.replace("<p>The", "").replace("<p>Models", "").replace("<p>*", ""))


def test_types_are_told_in_a_few_words() -> None:
    assert text(words_of({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]})) == "integer (≥ 0) or null"
    assert text(words_of({"enum": ["a", None]})) == '"a" or null'
    assert text(words_of({"type": "array", "items": {"$ref": "#/components/schemas/A"}})) == "list of A"
    assert text(words_of({"type": "object", "additionalProperties": {"type": "number"}})) == "object of number"
    assert text(words_of({})) == "anything"
    first, second = fields_of({"required": ["b"], "properties": {"a": {"type": "string", "default": "x"}, "b": {}}})
    assert (first.name, first.is_needed) == ("b", True)
    assert (second.name, second.note) == ("a", 'default "x"')


def test_a_command_quotes_its_body_and_names_its_method() -> None:
    told = {
        "security": [{"key": ["admin"]}],
        "parameters": [{"name": "name", "in": "path", "example": "demo"}],
        "requestBody": {"content": {"application/json": {"example": {"note": "it's"}}}},
    }
    said = shlex.split(curl("put", "/api/{name}", told))
    assert said[:4] == ["curl", "-X", "PUT", "$URL/api/demo"]
    assert said[-2:] == ["-d", '{"note": "it\'s"}']
    assert curl("get", "/docs", {"security": []}) == 'curl "$URL/docs"'


async def test_commands_of_the_page_do_what_they_say(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0")
    commands = [unescape(each) for each in re.findall(r"<pre>(curl .*)</pre>", PAGE)]
    asked = [next(c for c in commands if f'URL{path}"' in c) for path in ("/v1/chat/completions", "/api/status")]
    env = {"URL": gateway.url, "KEY": gateway.admin_key, "PATH": "/usr/bin:/bin"}
    done = await asyncio.create_subprocess_exec(
        "bash", "-c", " && ".join(asked), env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await done.communicate()
    assert b"chat.completion" in said
    assert b"num_requests" in said


async def test_the_root_leads_a_browser_to_the_page_and_tells_programs_what_there_is(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as stranger:
        led = await stranger.get("/", headers={"Accept": "text/html,*/*"})
        assert (led.status_code, led.headers["Location"]) == (303, "docs")
        places = (await stranger.get("/")).json()
        assert places["name"] == "jupyter_dsserve"
        for name in ("docs", "openapi", "health", "metrics"):
            assert (await stranger.get(f"/{places[name]}")).status_code in (200, 401, 503), name
        answer = await stranger.get("/docs")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.text == PAGE
