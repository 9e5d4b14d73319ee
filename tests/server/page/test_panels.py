"""The panels: parameters, tools, forms, probabilities, the request as code, the server's figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from running import Running

pytest.importorskip("selenium", reason="needs selenium")

from page_driver import Page
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser
SENT = """
    window.sent = [];
    const real = window.fetch;
    window.fetch = (path, options) => {
        if (options?.body) window.sent.push(JSON.parse(options.body));
        return real(path, options);
    };
"""
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'


def test_parameters_reach_the_server_and_stay(page: Page, server: Running) -> None:
    page.get("#settings-toggle").click()
    page.get("#system").send_keys("Be brief.")
    for name, value in {"temperature": "0.3", "top_p": "0.9", "max_tokens": "7", "seed": "42"}.items():
        page.get(f"#param-{name}").send_keys(value)
    page.fill("#param-stop_token_ids", "3, 4")
    page.fill("#param-logit_bias", '{"7": -1.5}')
    page.fill("#param-ignore_eos", "true")
    page.fill("#thinking", "off")
    page.fill("#chat_template_kwargs", '{"mood": "good"}')
    page.fill("#param-stop", "END\n\\n\\n")
    page.picture("settings")
    page.run(SENT)
    page.ask("Hi")
    request = server.engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, request.seed) == (0.3, 0.9, 7, 42)
    assert (sampling.stop, sampling.stop_token_ids) == (("END", "\n\n"), (3, 4))
    assert (sampling.logit_bias, sampling.ignore_eos) == ({7: -1.5}, True)
    kwargs = page.run("return window.sent[0].chat_template_kwargs")
    assert kwargs == {"mood": "good", "enable_thinking": False, "thinking": False}
    assert "system\nBe brief.<|im_end|>" in server.tokenizer.decode(request.prompt.tolist(), False)
    assert "cut at the token limit" in page.get(".message.assistant .foot").text
    page.browser.refresh()
    page.wait(lambda: page.status() == "ready")
    assert page.get("#system").get_attribute("value") == "Be brief."
    assert page.get("#param-temperature").get_attribute("value") == "0.3"


def test_what_cannot_be_sent_is_said_at_its_field(page: Page, server: Running) -> None:
    for selector, value, told in (
        ("#param-temperature", "500", "100"),
        ("#param-top_p", "0", "top_p must be above 0"),
        ("#tools", "[broken", "is no JSON"),
        ("#tools", '[{"type": "function", "function": {}}]', "Tool 1 has no name"),
        ("#param-logit_bias", "[]", "logit_bias must be a JSON object"),
    ):
        page.fill(selector, value)
        page.get("#input").send_keys("Hi", Keys.ENTER)
        page.wait(lambda told=told: told in page.status())
        assert page.focused() == page.get(selector)
        assert page.get(selector).get_attribute("aria-invalid") == "true"
        page.fill(selector, "")
        assert page.get(selector).get_attribute("aria-invalid") is None
        page.fill("#input", "")
    assert server.engine.requests == []
    assert page.all(".message") == []


def test_a_tool_is_called_and_its_result_goes_back(page: Page, server: Running) -> None:
    server.says(CALL)
    page.fill("#tools", json.dumps([WEATHER]))
    assert page.text_of("#tools-state") == "Valid: weather"
    page.fill("#tool_choice", "auto")
    page.say("Weather?")
    page.answered()
    assert page.get(".call h3").text == "weather"
    assert page.get(".call pre").text == '{\n  "city": "Bonn"\n}'
    assert page.focused().accessible_name == "Result of weather"
    page.get("#input").send_keys("never mind", Keys.ENTER)  # not before the result
    page.wait(lambda: "result of the tool call" in page.status())
    server.says("Cold.")
    page.focused().send_keys('{"degrees": 3}')
    page.picture("tools")
    page.press("Send the result")
    page.wait(lambda: len(server.engine.requests) == 2)
    assert page.answered() == "Cold."
    prompt = server.tokenizer.decode(server.engine.requests[1].prompt.tolist(), False)
    assert '{"degrees": 3}' in prompt.partition("weather")[2]
    assert page.all(".call textarea[readonly]")
    server.says("Very cold.")
    page.press("Regenerate")
    page.wait(lambda: len(server.engine.requests) == 3)
    assert page.answered() == "Very cold."
    assert server.engine.requests[2].prompt.tolist() == server.engine.requests[1].prompt.tolist()


def test_forms_are_asked_for_as_the_api_has_them(page: Page, server: Running) -> None:
    page.run(SENT)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wrapped = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for kind, text, answer, expected, told in (
        ("json_schema", json.dumps(schema), '{"a":1}', {"response_format": wrapped}, "✓ Valid JSON"),
        ("json_object", "", '{"a":', {"response_format": {"type": "json_object"}}, "✗ Not valid JSON"),
        ("regex", "[a-z]+", "abc", {"regex": "[a-z]+"}, ""),
        ("choice", "yes\nno\n", "no", {"guided_choice": ["yes", "no"]}, "✓ One of the choices"),
        ("ebnf", 'root ::= "a"', "a", {"ebnf": 'root ::= "a"'}, ""),
    ):
        page.fill("#form-kind", kind)
        page.fill("#form-text", text)
        server.says(answer)
        shown = page.ask("Go")
        assert shown == ('{\n  "a": 1\n}' if kind == "json_schema" else answer)
        body = page.run("return window.sent.at(-1)")
        assert {name: body.get(name) for name in expected} == expected
        assert server.engine.requests[-1].sampling.grammar.kind == kind
        assert page.text_of(".assistant .verdict").startswith(told)
        assert bool(page.text_of(".assistant .verdict")) is bool(told)
        page.get("#new-chat").click()
    page.fill("#form-kind", "text")
    page.ask("Go")
    assert server.engine.requests[-1].sampling.grammar is None


def test_answers_in_a_form_are_judged(page: Page) -> None:
    script = """
        const [body, text] = arguments;
        return import("./page/structured.js").then(({judged}) => judged(body, text));
    """
    json_body = {"response_format": {"type": "json_object"}}
    big = '{"a":[1,2.50,{}],"n":12345678901234567890,"s":"x, {y: \\"z\\"}"}'
    good = page.run(script, json_body, big)
    assert good["valid"]
    assert good["told"] == "Valid JSON"
    assert '"n": 12345678901234567890,\n' in good["text"]  # as it was written
    assert good["text"].startswith('{\n  "a": [\n    1,\n    2.50,\n    {}\n  ],\n')
    assert json.loads(good["text"]) == json.loads(big)
    bad = page.run(script, json_body, '{"a": 1')
    assert not bad["valid"]
    assert bad["told"].startswith("Not valid JSON: ")
    assert page.run(script, {"guided_choice": ["yes"]}, "no") == {
        "valid": False, "told": "None of the choices", "text": "no"
    }  # fmt: skip
    assert page.run(script, {}, "text") is None


def test_probabilities_by_keyboard_and_mouse(page: Page, server: Running) -> None:
    page.run("arguments[0].click()", page.get("#logprobs"))
    page.fill("#top_logprobs", "3")
    assert page.ask("Hi") == "Hello, world 🙂!"
    assert server.engine.requests[0].sampling.logprobs == 3
    tokens = page.all(".token")
    assert "".join(token.get_attribute("textContent") for token in tokens).replace("·", "") == "Hello, world 🙂!"
    assert [token.get_attribute("tabindex") for token in tokens] == ["0"] + ["-1"] * (len(tokens) - 1)
    name = tokens[0].accessible_name
    assert "probability 77.9 %; likeliest: " in name  # e^-0.25
    page.get(".tokens summary").send_keys(Keys.TAB)
    assert page.focused() == tokens[0]
    assert page.get("#popup").is_displayed()
    assert [row.text for row in page.all("#popup .chosen")] == [f"{tokens[0].text} 77.9 %"]
    assert len(page.all("#popup tr")) == 3
    tokens[0].send_keys(Keys.ARROW_RIGHT)
    assert page.focused() == tokens[1]
    page.picture("probabilities")
    tokens[1].send_keys(Keys.END)
    assert page.focused() == tokens[-1]
    tokens[-1].send_keys(Keys.ESCAPE)
    assert not page.get("#popup").is_displayed()
    tokens[-1].send_keys(Keys.HOME, Keys.TAB)
    assert page.focused().get_attribute("role") != "option"  # one Tab leaves the list
    assert not page.get("#popup").is_displayed()
    page.run("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", tokens[2])
    assert page.get("#popup").is_displayed()


def test_the_request_as_code_runs(page: Page, server: Running) -> None:
    page.get("#settings-toggle").click()
    page.fill("#param-temperature", "0.5")
    page.fill("#param-top_k", "7")
    page.fill("#system", 'It\'s "quoted" \\ $HOME `date` 🙂')
    page.fill("#input", "What's up?\nNew line")
    summary = next(made for made in page.all("summary") if made.text == "The request as code")
    summary.click()
    for label, command in (("Copy as curl", ["sh", "-c"]), ("Copy as Python", [sys.executable, "-c"])):
        page.press(label)
        page.wait(lambda: page.status().startswith("The co"))
        code = page.get("#code").get_attribute("value")
        done = subprocess.run(
            [*command, code], capture_output=True, text=True, timeout=60, env={**os.environ, "CORE_API_KEY": "none"}
        )
        assert "Hello, world" in done.stdout, done.stderr
    assert [request.sampling.top_k for request in server.engine.requests] == [7, 7]
    prompts = {server.tokenizer.decode(request.prompt.tolist(), False) for request in server.engine.requests}
    [prompt] = prompts
    assert 'It\'s "quoted" \\ $HOME `date` 🙂<|im_end|>' in prompt
    assert "user\nWhat's up?\nNew line<|im_end|>" in prompt


def test_the_live_panel_follows_the_server_only_while_it_is_seen(page: Page, server: Running) -> None:
    count = "return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/v1/loads')).length"
    values = {"running_requests": 3.0, "kv_usage_ratio": 0.25, "cache_hit_ratio": 0.5, "decode_tokens_per_second": 12.0}

    async def control(op: str, **arguments: object) -> dict[str, float]:
        return values

    server.engine.control = control
    assert page.run(count) == 0
    page.get("#server-toggle").click()
    page.wait(lambda: page.text_of(".plot .now") == "3")
    assert [made.text for made in page.all(".plot .now")] == ["3", "0", "12.0", "50.0 %", "25.0 %"]
    assert "of 1,008." in page.get("#kv").text  # 63 pages of 16
    values["running_requests"] = 5.0
    page.wait(lambda: page.text_of(".plot .now") == "5")
    picture = page.get(".plot svg")
    assert picture.accessible_name == "Running requests in the last two minutes: now 5, lowest 3, highest 5"
    assert len(page.get(".plot polyline").get_attribute("points").split()) == page.run(count)
    assert "tiny" in page.text_of("#facts")
    page.picture("server")
    page.get("#server-toggle").click()
    asked = page.run(count)
    later = "const done = arguments[0]; setTimeout(() => done(), 1500)"
    page.browser.execute_async_script(later)
    assert page.run(count) <= asked + 1  # the one that was on its way
