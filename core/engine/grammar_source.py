"""What is asked of a grammar's source before and after a backend has seen it. Called on the threads that compile."""

from __future__ import annotations

import json
import re

from core.frontend.structured import schemas_of
from core.interfaces.errors import CoreError, EngineError, RequestError
from core.interfaces.grammar import CompiledGrammar, GrammarBackend, GrammarSource
from core.interfaces.params import GrammarParams

MAX_DEPTH = 200  # of brackets: deeper ones end parsers, ours and those of libraries, by overflowing their stacks
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_BRACKET = re.compile(r"[\[\](){}]")


def compiled(backend: GrammarBackend, params: GrammarParams) -> CompiledGrammar:
    """Raises RequestError that names the request's field; a backend's own failure is an EngineError.

    A native library may end in an exception that is no `Exception`, which must not end its thread.
    """
    try:
        check_depth(params)
        return backend.compile(GrammarSource(params.kind, params.text))  # type: ignore[arg-type]
    except RequestError as error:
        raise _named(_blamed(backend, params, error), params) from error
    except CoreError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise EngineError(
            f"the grammar backend {type(backend).__name__} failed: {type(error).__name__}: {error}",
            hint="choose another with --grammar-backend, or report this to its author",
        ) from error


def check_depth(params: GrammarParams) -> None:
    """Raises RequestError for brackets that are nested too deeply."""
    is_json = params.kind in ("json_schema", "structural_tag", "choice")
    text = (_JSON_STRING if is_json else _ESCAPED).sub("", params.text)
    depth = 0
    for found in _BRACKET.finditer(text):
        depth = depth + 1 if found[0] in "[({" else max(0, depth - 1)
        if depth > MAX_DEPTH:
            raise RequestError(f"brackets are nested more than {MAX_DEPTH} deep", hint="use a flatter grammar")


def _blamed(backend: GrammarBackend, params: GrammarParams, error: RequestError) -> RequestError:
    """The error of the JSON schema in a structure that is wrong on its own, by the field that it came from."""
    if params.kind != "structural_tag" or not params.schemas:
        return error
    try:
        schemas = list(schemas_of(json.loads(params.text)))
    except (ValueError, RecursionError):
        return error
    for field, schema in zip(params.schemas, schemas, strict=False):
        try:
            backend.compile(GrammarSource("json_schema", json.dumps(schema)))
        except RequestError as found:
            return RequestError(found.message, param=field, code=found.code, status=found.status, hint=found.hint)
        except Exception:  # the whole was refused in good order, that is what counts
            return error
    return error


def _named(error: RequestError, params: GrammarParams) -> RequestError:
    field = error.param if error.param in params.schemas else params.param or error.param
    message = error.message if not field or error.message.startswith(field) else f"{field}: {error.message}"
    return RequestError(message, param=field, code=error.code, status=error.status, hint=error.hint)
