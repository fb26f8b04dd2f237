"""Fields that say what an answer must match, and how each is read. Never compiles a grammar: the worker does.

`response_format` is OpenAI's: text, json_object (any JSON object) or json_schema. The `guided_*` fields have the names
that other servers gave them.
"""

import json
import re

from runtime.domain.grammar import ANY_OBJECT, Grammar, GrammarKind, one_of
from runtime.services.openai.fields import invalid

GRAMMAR_FIELDS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCHEMA_FIELDS = frozenset({"name", "description", "schema", "strict"})


def read_response_format(value: object) -> Grammar | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid("must be an object")
    match value.get("type"):
        case "text" if value.keys() == {"type"}:
            return None
        case "json_object" if value.keys() == {"type"}:
            return ANY_OBJECT
        case "json_schema" if value.keys() == {"type", "json_schema"}:
            return _read_named_schema(value["json_schema"])
        case "text" | "json_object" | "json_schema":
            raise invalid("has an unknown field, or lacks json_schema")
        case _:
            raise invalid("must have a type that is text, json_object or json_schema")


def _read_named_schema(value: object) -> Grammar:
    """Answers always match the schema, whether `strict` or not."""
    if not isinstance(value, dict) or not value.keys() <= _SCHEMA_FIELDS:
        raise invalid("must have a json_schema that is an object of name, description, schema and strict")
    name, strict = value.get("name"), value.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid("must have a json_schema.name of 1 to 64 letters, digits, _ and -")
    if not isinstance(value.get("description"), str | None) or not isinstance(strict, bool | None):
        raise invalid("must have a text as json_schema.description, and true or false as json_schema.strict")
    schema = value.get("schema", {})
    if not isinstance(schema, dict):
        raise invalid("must have an object as json_schema.schema")
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def read_schema(value: object) -> Grammar | None:
    """An object, or its JSON as a string."""
    if value is None:
        return None
    if isinstance(value, dict):
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(value))
    return _read_text(GrammarKind.JSON_SCHEMA, value, "must be a JSON schema")


def read_regex(value: object) -> Grammar | None:
    return None if value is None else _read_text(GrammarKind.REGEX, value, "must be a regular expression")


def read_lark(value: object) -> Grammar | None:
    return None if value is None else _read_text(GrammarKind.LARK, value, "must be a grammar in Lark's notation")


def read_choice(value: object) -> Grammar | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise invalid("must be a list of strings, at least one")
    return one_of(value)


def _read_text(kind: GrammarKind, value: object, rule: str) -> Grammar:
    if not isinstance(value, str) or not value:
        raise invalid(rule)
    return Grammar(kind, value)
