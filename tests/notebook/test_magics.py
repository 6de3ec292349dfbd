"""``%dsserve`` and ``%%dsserve`` in a real kernel, beside a real Jupyter server."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from jupyter_dsserve.notebook.magics import VERBS, DSServeMagics
from tests.engine.test_loop import toy_text
from tests.notebook.conftest import Kernel
from tests.support import Command, until


@pytest.fixture(scope="module")
def loaded(kernel: Kernel) -> Kernel:
    """demo@v1 is READY."""
    assert kernel.run("%dsserve load demo --model toy:step_s=0.001").shown
    return kernel


def test_looking_starts_nothing_and_loading_starts_the_gateway(kernel: Kernel) -> None:
    assert kernel.run("%dsserve status").shown[0]["text/plain"].startswith("the gateway is OFF")
    assert kernel.server.processes() == []
    loading = kernel.run('%dsserve load first --model toy:load_s=0.5 --note "the first one"')
    bar, table = loading.shown
    assert "application/vnd.jupyter.widget-view+json" in loading.replaced[0], "no progress bar was shown"
    assert bar == {"text/plain": ""}, "it stays"
    assert "application/json" not in table
    assert "first@v1: READY" in table["text/plain"]
    assert "the first one" in table["text/html"]
    assert len(kernel.server.processes()) == 2
    kernel.run("%dsserve unload first")


def test_the_cell_is_the_prompt_and_the_answer_streams_into_the_output(loaded: Kernel) -> None:
    said = loaded.run("%%dsserve demo --max-tokens 20\ndef fibonacci(n):")
    assert said.text == toy_text("def fibonacci(n):", 20) + "\n"
    assert re.search(r"demo@v1 · 20 tokens · \d\.\d\d s · first token \d+ ms", said.shown[0]["text/plain"])
    chat = loaded.run("%%dsserve demo@v1 --max-tokens 6 --chat\nhi")
    assert chat.text == toy_text("user: hi\n", 6) + "\n"


def test_a_form_that_is_asked_for_reaches_the_version_and_a_bad_schema_does_not(loaded: Kernel, tmp_path: Path) -> None:
    """A toy refuses any form by name, which shows that it was asked."""
    for form in ('--regex "[0-9]+"', "--choice yes --choice no"):
        assert "in no other form: leave structured_outputs out" in loaded.run(f"%%dsserve demo {form}\nhi").errors
    (tmp_path / "half.json").write_text("{")
    assert "not a file with a JSON schema" in loaded.run(f"%%dsserve demo --json {tmp_path}/half.json\nhi").errors
    code = "from jupyter_dsserve import Client\nClient().generate('demo', 'hi', n=2)"
    assert "n is 2, and an answer here has one text" in loaded.run(code).errors
    code = "Client().generate('demo', 'hi', max_tokens=3, min_p=0.5, timeout_s=5.0).text"
    assert loaded.run(code).shown[0]["text/plain"] == repr(toy_text("hi", 3))


def test_an_encoder_is_loaded_by_its_task_and_asked_for_vectors(loaded: Kernel) -> None:
    said = loaded.run("%dsserve load emb --model toy:step_s=0.001 --task embed").shown[-1]["text/plain"]
    assert "emb@v1: READY" in said
    assert "a formula of the text" in said
    code = (
        "from jupyter_dsserve import Client\nClient().embed('emb', ['a', 'b']).shape, Client().embed('emb', 'a').shape"
    )
    assert loaded.run(code).shown[0]["text/plain"] == "((2, 8), (8,))"
    errors = loaded.run("%%dsserve emb\nhello").errors
    assert "emb@v1 has the task 'embed', and this route is for 'generate'" in errors
    loaded.run("%dsserve unload emb")


async def test_an_interrupt_cancels_the_request_on_the_server_in_one_line(loaded: Kernel) -> None:
    loaded.begin("%%dsserve demo --max-tokens 1000000\nhello")
    loaded.wait_for_text()
    async with loaded.server.caller() as caller:

        async def in_flight() -> int:
            return int((await caller.version("demo", "v1"))["replicas"][0]["in_flight"])

        assert await in_flight() == 1
        loaded.interrupt()
        said = loaded.finish()
        await until(in_flight, lambda n: n == 0)
    assert loaded.is_error_reply(), "a run of all cells would go on"
    assert said.errors.strip().splitlines() == [
        "UsageError: interrupted: what was being answered is cancelled; what was loading goes on"
    ]
    assert loaded.run("1 + 1").shown[0]["text/plain"] == "2"


async def test_an_interrupt_between_two_pieces_cancels_it_too(loaded: Kernel) -> None:
    """The traceback of what was raised is kept by IPython, and with it all that its frames hold."""
    loaded.run(
        "from jupyter_dsserve.notebook import asking\n"
        "def interrupted(*words, **options): raise KeyboardInterrupt\n"
        "asking.print = interrupted"
    )
    assert "interrupted: " in loaded.run("%%dsserve demo --max-tokens 1000000\nhello").errors
    loaded.run("del asking.print")
    async with loaded.server.caller() as caller:
        await until(lambda: caller.version("demo", "v1"), lambda v: v["replicas"][0]["in_flight"] == 0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%dsserve lod demo", "did you mean load?"),
        ("%dsserve frobnicate", "the verbs are load, unload"),
        ("%dsserve load demo --model builtin:nope", "there are demo-v1, demo-v2"),
        ("%dsserve load demo --modle toy:", "--modle"),
        ("%dsserve load demo@v1 --version v2 --model toy:", "two versions"),
        ("%dsserve load bad --model toy: --python /bin/false", "bad@v1 is FAILED: "),
        ("%dsserve route demo v1", "'v1': write VERSION=PERCENT"),
        ("%dsserve route demo v1=50", "sum to 50"),
        ("%dsserve policy demo --rule X=v2", "'X=v2': write HEADER=VALUE:VERSION"),
        ("%dsserve policy demo --fallback v9", "'v9'"),
        ("%dsserve activate demo", "name the version too, one of demo@v1"),
        ("%dsserve activate demo v9", "'v9'"),
        ("%dsserve logs nobody", "'nobody'"),
        ("%dsserve status nobody", "'nobody'"),
        ("%%dsserve demo", "the cell is the prompt: write one below the first line, such as def fibonacci(n):"),
        ("%%dsserve demo --max-tokens 9\n\n", "%%dsserve demo: the cell is the prompt"),
        ("%%dsserve status demo", "a verb has one percent sign: %dsserve status demo"),
        ("%%dsserve nobody\nhi", "'nobody'"),
        ("%%dsserve demo --max-tokens 0\nhi", "max_tokens"),
        ("%%dsserve demo --temperature nan\nhi", "finite"),
        ("%dsserve route demo v1=nan", "'v1=nan': write VERSION=PERCENT"),
        ("%dsserve bench nobody", "'nobody'"),
        ("%dsserve bench demo --rate 1 --concurrency 1", "give one of them"),
        ("%dsserve bench demo --url http://127.0.0.1:1", "nothing answers at http://127.0.0.1:1/v1"),
        ("%dsserve apply no-such.yaml", "no-such.yaml cannot be read"),
        ("%dsserve load demo --model toy: --metadata loss", "--metadata loss: write KEY=VALUE"),
        ("%dsserve connect http://[x --key k", "'http://[x': give one such as"),
        ("%dsserve connect 127.0.0.1:8899 --key k", "give one such as"),
        ("%dsserve connect http://127.0.0.1:1 --key schlüssel", "no key has"),
        ("%dsserve connect http://127.0.0.1:1 --key k", "nothing answers"),
    ],
)
def test_errors_are_one_line(loaded: Kernel, line: str, said: str) -> None:
    output = loaded.run(line)
    lines = [text for text in output.errors.strip().splitlines() if text]
    assert len(lines) == 1, output
    assert lines[0].startswith("UsageError: ")
    assert said in lines[0]
    assert loaded.is_error_reply()


def test_routes_activation_and_unloading_show_how_things_are_then(loaded: Kernel) -> None:
    loaded.run("%dsserve load demo --model toy: --version v2")
    assert "demo: v1=90 v2=10" in loaded.run("%dsserve route demo v1=90 v2=10").shown[0]["text/plain"]
    assert "width:90%" in loaded.run("%dsserve status demo").html
    assert "demo: v2=100" in loaded.run("%dsserve activate demo v2").shown[-1]["text/plain"]
    # v1 drains, and is not loaded again before that has ended.
    loaded.run_until("%dsserve status demo", lambda seen: "○\u00a0STOPPED" in seen.html)
    assert "demo@v1: READY" in loaded.run("%dsserve load demo@v1").shown[-1]["text/plain"]
    assert "ready on cpu" in loaded.run("%dsserve logs demo@v1 --lines 3").text
    loaded.run("%dsserve activate demo@v1")


def test_a_version_that_goes_without_saying_need_not_be_named_and_else_there_is_a_list(loaded: Kernel) -> None:
    loaded.run("%dsserve load lone --model toy:")
    assert "ready on cpu" in loaded.run("%dsserve logs lone").text
    assert " --join " in loaded.run("%dsserve join lone").text
    loaded.run("%dsserve load lone --model toy: --version v2 --no-wait")
    for line in ("logs lone", "scale lone 2", "autoscale lone --off", "join lone", "activate lone"):
        said = f"UsageError: %dsserve {line.split()[0]} lone: name the version too, one of lone@v1, lone@v2"
        assert said in loaded.run(f"%dsserve {line}").errors
    loaded.run("%dsserve delete lone")


def test_a_gray_release_is_begun_shown_paused_and_taken_back(loaded: Kernel) -> None:
    for version in ("v1", "v2"):
        loaded.run(f"%dsserve load gray@{version} --model toy:step_s=0.001")
    assert "gray has no rollout: start one first" in loaded.run("%dsserve rollout gray").errors
    begun = loaded.run("%dsserve rollout gray v2 --steps 20,100 --interval 600 --min-requests 5 --max-latency-ratio 3")
    assert "rollout of gray@v2 beside v1: PROGRESSING" in begun.shown[0]["text/plain"]
    assert "steps 'a,b': write percents" in loaded.run("%dsserve rollout gray v2 --steps a,b").errors
    assert "name the version too" in loaded.run("%dsserve rollout gray --mirror 5").errors
    assert "PROGRESSING beside v1: promote it or roll it back" in loaded.run("%dsserve activate gray v2").errors
    assert "PAUSED" in loaded.run("%dsserve pause gray").shown[0]["text/plain"]
    assert "PROGRESSING" in loaded.run("%dsserve resume gray").shown[0]["text/plain"]
    back = loaded.run("%dsserve rollback gray").shown[0]["text/plain"]
    assert back.startswith("gray: v1=100")
    assert "ROLLED_BACK at 0 % of 20, 100\nby hand" in back


def test_a_check_is_called_in_the_kernel(loaded: Kernel) -> None:
    code = """
    import time
    from jupyter_dsserve import Client
    seen, client = [], Client()
    def check(prompt, answer):
        seen.append((prompt, answer))
        return 1.0
    client.rollout("gray", "v2", steps=[50, 100], interval_s=600, min_requests=5, check=check)
    end = time.monotonic() + 30
    while not seen and time.monotonic() < end:
        client.generate("gray", "hi", max_tokens=3)
    client.rollback("gray")
    set(seen)
    """
    shown = loaded.run("\n".join(line.removeprefix("    ") for line in code.strip("\n").splitlines())).shown
    assert shown[0]["text/plain"] == repr({("hi", toy_text("hi", 3))})


def test_a_policy_is_set_piece_by_piece_and_shown(loaded: Kernel) -> None:
    loaded.run("%dsserve policy demo --rate 1000 --fallback-answer 'Come back later.'")
    said = loaded.run("%dsserve policy demo --rule X-User-Group=beta:v1").shown[0]["text/plain"]
    assert said.splitlines() == ["rate: 1000.0", "fallback_answer: Come back later.", "rule X-User-Group=beta: v1"]
    back = loaded.run("%dsserve policy demo --rate 0 --fallback-answer '' --rule ''").shown[0]["text/plain"]
    assert back == "no limits: the policy is the default one"


def test_the_command_to_join_comes_with_what_keeps_its_token_out_of_process_lists(loaded: Kernel) -> None:
    command, *advice = loaded.run("%dsserve join demo@v1").text.strip().splitlines()
    assert command.startswith("printf '%s\\n' ")
    assert "--version v1" in command
    assert all(line.startswith("# ") for line in advice)  # so that all of it may be pasted into a shell
    assert "--token-file FILE" in " ".join(advice)


def test_a_deployments_file_is_written_applied_and_told_in_history(loaded: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    loaded.run("%dsserve load filed@v1 --model toy: --metadata loss=2.5 --metadata run=r7")
    loaded.run("%dsserve load filed@v2 --model toy:")
    assert f"written to {file}" in loaded.run(f"%dsserve export {file}").text
    text = loaded.run("%dsserve export").text.strip() + "\n"
    for line, words in (
        ("onnx demo@v1", "name the directory to make"),
        ("onnx --out x", "name the version, such as emb@v1"),
        ("onnx filed --out x", "name the version too, one of filed@v1, filed@v2"),
        ("onnx demo@v1 --out x", "demo@v1 has the task generate and the runner toy"),
        (f"{file} demo@v1", "only onnx takes a version"),
    ):
        assert words in loaded.run(f"%dsserve export {line}").errors
    assert "loss: 2.5\n          run: r7" in text
    assert "nothing to do" in loaded.run(f"%dsserve apply {file} --prune").shown[-1]["text/plain"]
    filed = "deployments:\n  filed:" + text.partition("  filed:")[2].replace("      v1: 100.0", "      v2: 100.0")
    file.write_text(filed)
    assert "- route filed: v2=100" in loaded.run(f"%dsserve apply {file} --dry-run").shown[-1]["text/plain"]
    assert "✓ route filed: v2=100" in loaded.run(f"%dsserve apply {file}").shown[-1]["text/plain"]
    assert "filed: v2=100" in loaded.run("%dsserve status filed").html
    lines = loaded.run("%dsserve history filed --limit 3").shown[-1]["text/plain"].splitlines()
    assert len(lines) == 4
    assert lines[-1].split()[2:] == ["route", "filed", "v2=100"]


def test_the_history_of_a_time_is_a_plot_with_a_picture_for_where_it_does_not_show_and_two_tables(
    loaded: Kernel,
) -> None:
    loaded.run("%%dsserve demo --max-tokens 3\nhi")
    history = "%dsserve history demo --since 1h --step 1m"  # the minutes are looked at each second
    plot, tables = loaded.run_until(history, lambda seen: len(seen.shown) == 2).shown
    assert "application/vnd.jupyter.widget-view+json" in plot
    assert "requests/s, " in plot["text/html"]
    assert plot["text/plain"] == "", "a page without widgets would show its source"
    assert 'stroke="#0072B2"' in plot["text/html"]
    assert "in steps of 1 min" in tables["text/plain"]
    assert "demo@v1" in tables["text/plain"]
    assert "ready" in tables["text/html"]
    assert "no version was loaded then" in loaded.run("%dsserve history --from 9h --to 8h").shown[-1]["text/plain"]
    for wrong, said in (
        ("--since yesterday", "'yesterday': give an age such as 30m"),
        ("--since 1h --step fast", "'fast': give a number with its unit"),
        ("--since 1 --step 1m", "the id of an event"),
        ("--since ²", "'²': give an age such as 30m"),
        ("--since 1d --from 2026-01-31", "two beginnings"),
        ("demo --deployment other", "two deployments"),
    ):
        errors = loaded.run(f"%dsserve history {wrong}").errors.strip()
        assert said in errors
        assert len(errors.splitlines()) == 1


def test_the_trace_of_a_call_is_a_timeline_and_a_table(loaded: Kernel) -> None:
    loaded.run("%%dsserve demo --max-tokens 3\nhi")
    listed = loaded.run("%dsserve trace --limit 1").shown[-1]["text/plain"].splitlines()
    id = listed[-1].split()[1]
    picture, table = loaded.run(f"%dsserve trace {id}").shown
    assert "application/vnd.jupyter.widget-view+json" in picture
    assert picture["text/plain"] == picture["text/html"] == "", "it shows its source where no widget shows"
    assert table["text/plain"].startswith(f"{id}  demo@v1, ")
    assert "    decode" in table["text/plain"]


def test_a_load_test_shows_a_table_and_a_plot_and_takes_its_bar_off_the_page(loaded: Kernel) -> None:
    found = loaded.run("%dsserve bench demo --concurrency 1,3 --seconds 0.4 --output-tokens 10")
    bar, table, plot = found.shown
    assert "application/vnd.jupyter.widget-view+json" in found.replaced[0]
    assert bar == {"text/plain": ""}
    assert "requests in flight  " in table["text/plain"]
    assert "<th" in table["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in plot
    assert plot["text/plain"] == "demo: p95, and dotted p50, over the concurrency"
    assert plot["text/html"].count("<path") == 3 + 5, "where no widget shows, axes and lines"


def test_a_load_test_that_is_interrupted_shows_what_it_has(loaded: Kernel) -> None:
    loaded.run(
        "import threading, _thread\n"
        "from jupyter_dsserve import Client\n"
        "def interrupt(progress):\n"
        "    if progress.done > 0.03: _thread.interrupt_main()\n"
    )
    code = "Client().bench('demo', concurrency=[2], seconds=20, output_tokens=10, on_progress=interrupt)"
    said = loaded.run(code)
    assert not said.is_error, said.errors
    assert "It was interrupted: the last point is shorter" in said.shown[0]["text/plain"]


def test_a_candidate_is_tried_with_a_bar_and_a_verdict(loaded: Kernel, tmp_path: Path) -> None:
    loaded.run("%dsserve load tried@v1 --model toy:step_s=0.001")
    loaded.run("%dsserve load tried@v2 --model toy:step_s=0.008")
    prompts = tmp_path / "prompts.jsonl"
    right, wrong = ({"prompt": "hello", "max_tokens": 9, "expect": {"equals": e}} for e in (toy_text("hello", 9), "x"))
    prompts.write_text(json.dumps(right))
    load = "--rounds 1 --seconds 1.5 --output-tokens 20 --report " + str(tmp_path / "out.md")
    tried = loaded.run(f"%dsserve validate tried@v2 --baseline tried@v1 --prompts {prompts} {load}")
    bar, verdict = tried.shown
    assert "application/vnd.jupyter.widget-view+json" in tried.replaced[0]
    assert bar == {"text/plain": ""}
    assert verdict["text/plain"].startswith("tried@v2 against tried@v1: FAILED")
    assert "times the baseline" in verdict["text/html"]
    assert verdict["text/html"].count("<table") == 2
    assert (tmp_path / "out.md").read_text().startswith("## tried@v2 against tried@v1: FAILED")
    code = f"v = Client().validate('tried@v2', prompts=[{right}, {wrong}], min_pass=0.5)"
    said = loaded.run(f"from jupyter_dsserve import Client\n{code}\nv.has_passed, [c.has_passed for c in v.cases]")
    assert said.shown[0]["text/plain"] == "(True, [True, False])"
    for line, why in (
        ("tried@v2", "there is nothing to validate by"),
        ("tried@v2 --baseline tried@v1 --rounds 0", "rounds is 0: give 1 or more"),
        ("tried@v2 --prompts no-such.jsonl", "no-such.jsonl cannot be read"),
        (f"tried@v2 --prompts {prompts} --report out.txt", "name a file that ends in .json"),
        (f"tried@v9 --prompts {prompts}", "v9"),
    ):
        errors = loaded.run(f"%dsserve validate {line}").errors.strip()
        assert why in errors
        assert len(errors.splitlines()) == 1
    loaded.run("%dsserve delete tried")


def test_the_kernels_interpreter_runs_the_worker(loaded: Kernel) -> None:
    loaded.run("%dsserve load mine --model toy: --python kernel")
    code = "from jupyter_dsserve import Client\nClient().version('mine', 'v1').spec.python"
    assert loaded.run(code).shown[0]["text/plain"] == repr(sys.executable)
    loaded.run("%dsserve unload mine")


def test_a_value_in_quotes_is_no_call_for_help(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(DSServeMagics, "load", lambda _, line: lines.append(line))
    magics = DSServeMagics(None)
    for line in ('hh --note "use -h now"', "hh --note '--help' -h"):
        magics.dsserve(f"load {line}")
    assert lines == ['hh --note "use -h now"'], "outside of quotes it is one"


def test_every_verb_has_help(loaded: Kernel) -> None:
    overview = loaded.run("%dsserve").text
    for verb in VERBS:
        assert f"%dsserve {verb}" in overview
        assert f"%dsserve {verb}" in loaded.run(f"%dsserve {verb} --help").text.splitlines()[0]
    assert loaded.run("%dsserve help load").text == loaded.run("%dsserve load --help").text
    cell = loaded.run("%dsserve help cell").text
    assert cell.startswith("%%dsserve [--max-tokens")
    assert "--compare VERSION VERSION" in cell
    assert "(%dsserve help cell says more)" in loaded.run("%%dsserve --seed 1\nhi").errors
    assert "(%dsserve help load says more)" in loaded.run("%dsserve load").errors


async def test_another_gateway_can_be_named_and_the_own_one_again(loaded: Kernel) -> None:
    with Command(loaded.server.home / "other", "--load", "other=toy:") as command:
        async with await command.caller() as caller:
            await caller.settled("other", "v1", "READY")
            url = str(caller.base_url).rstrip("/")
            there = loaded.run(f"%dsserve connect {url} --key {command.key}")
            assert "other: v1=100" in there.shown[0]["text/plain"]
            assert loaded.run("%%dsserve other --max-tokens 3\nhi").text
            names = "print([d.name for d in ({}).status().deployments])"
            loaded.run("from jupyter_dsserve import AsyncClient, Client")
            assert loaded.run(names.format("Client()")).text == "['other']\n"
            awaited = "print((await AsyncClient().status()).deployments[0].name)"
            assert loaded.run(awaited).text == "other\n"
            assert "other" in loaded.run("%dsserve panel").shown[0]["text/html"]
            assert "'other'" not in loaded.run(names.format("Client(own=True)")).text
            assert "not valid here" in loaded.run("Client(key='dsk_wrong').status()").errors
            assert "demo: " in loaded.run("%dsserve connect").shown[0]["text/plain"]
            assert "'demo'" in loaded.run(names.format("Client()")).text
            refused = loaded.run(f"%dsserve connect {url} --key dsk_wrong")
            assert "not valid here" in refused.errors
            assert "demo: " in loaded.run("%dsserve status demo").shown[0]["text/plain"], "it went over all the same"


def test_a_jupyter_servers_own_address_is_told_from_a_gateways(loaded: Kernel) -> None:
    """The likeliest mistake: /dsserve was forgotten. Jupyter has an /api/status of its own."""
    wrong = loaded.run(f"%dsserve connect {loaded.server.url} --key {loaded.server.token}")
    assert "is not a dsserve gateway (a Jupyter server has its own at URL/dsserve)" in wrong.errors
    assert len(wrong.errors.strip().splitlines()) == 1
    right = loaded.run(f"%dsserve connect {loaded.server.url}/dsserve --key {loaded.server.token}")
    assert "demo: " in right.shown[0]["text/plain"]
    assert loaded.run("%%dsserve demo --max-tokens 3\nhi").text
    loaded.run("%dsserve connect")


def test_quotes_hold_an_argument_together_and_are_no_part_of_it(loaded: Kernel) -> None:
    whole = toy_text("hello", 40)
    blank = whole.index(" ", 10)
    stop = whole[blank - 1 : blank + 3]
    said = loaded.run(f'%%dsserve demo --max-tokens 40 --stop "{stop}"\nhello')
    assert said.text == whole[: whole.index(stop)] + "\n"
    loaded.run("%dsserve load quoted --model \"toy:step_s=0.001\" --note 'two words'")
    shown = loaded.run("%dsserve status quoted").shown[0]["text/plain"]
    assert shown.endswith("two words")
    loaded.run("%dsserve unload quoted")


def test_after_a_kernel_restart_the_deployment_serves_on_and_is_found_again(loaded: Kernel) -> None:
    before = loaded.server.processes()
    loaded.restart()
    loaded.run("%load_ext jupyter_dsserve")
    assert loaded.server.processes() == before
    assert loaded.run("%%dsserve demo --max-tokens 5\nhello").text == toy_text("hello", 5) + "\n"


def test_a_key_is_shown_once_with_a_warning_and_a_snippet_that_names_no_key(loaded: Kernel) -> None:
    told = loaded.run("%dsserve key create app --deployments demo --rate 5 --burst 9 --ttl 60").shown[0]
    plain, html = told["text/plain"], told["text/html"]
    key = re.search(r"dsk_\S+", plain)
    id = re.search(r"%dsserve key revoke (\w+)", plain)
    assert key
    assert id
    assert key[0] in html
    assert "clear the output of this cell" in plain
    assert "5 calls/s, 9 at once" in plain
    assert 'api_key=os.environ["DSSERVE_KEY"]' in plain
    assert plain.count("dsk_") == 1
    listed = loaded.run("%dsserve key list").shown[0]
    assert f"{id[0].split()[-1]}  app   infer  demo         5 calls/s, 9 at once" in listed["text/plain"]
    assert "<th" in listed["text/html"]
    assert "dsk_" not in str(listed)
    url = loaded.run("from jupyter_dsserve import Client\nprint(Client().address().url)").text.strip()
    there = loaded.run(f"%dsserve connect {url} --key {key[0]}").shown[0]["text/plain"]
    assert there == f"with this key you may ask, at {url}: demo"
    assert loaded.run("%%dsserve demo --max-tokens 3\nhi").text
    assert "demo: " in loaded.run("%dsserve connect").shown[0]["text/plain"]
    left = loaded.run(f"%dsserve key revoke {id[0].split()[-1]}").shown[0]
    assert left["text/plain"] == "There are no keys but the admin key."
    assert "name its id" in loaded.run("%dsserve key revoke").errors
    assert "there is no key with the id 'x'" in loaded.run("%dsserve key revoke x").errors
