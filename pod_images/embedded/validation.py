"""Checking a posted graph before it is queued: ComfyUI's error types, their words, and its partial success."""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass, field
from typing import Any

from .calling import call_over_lists
from .graph import HiddenValues, Prompt, declared_inputs, gather_inputs
from .registry import NodeClass, NodeRegistry

Problem = dict[str, Any]
Options = dict[str, Any]
MAX_LISTED_OPTIONS = 20


@dataclass(frozen=True)
class Verdict:
    """What validation found. `error` is None when at least one output can run."""

    error: Problem | None
    outputs: list[str]
    node_errors: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _NodeVerdict:
    valid: bool
    problems: list[Problem] = field(default_factory=list)


class InvalidInputError(Exception):
    """One input of a node is wrong; carries the problem to report."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem["message"])
        self.problem = problem


def problem(kind: str, message: str, details: str = "", **extra_info: Any) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def validate_prompt(prompt: Prompt, registry: NodeRegistry, targets: list[str] | None = None) -> Verdict:
    """Checks a graph and coerces its literals in place (history keeps the coerced copy).

    Args:
        targets: output node ids to run; None runs every output node.
    """
    outputs: list[str] = []
    for node_id, node in prompt.items():
        refusal = _class_problem(node_id, node, registry)
        if refusal is not None:
            return Verdict(refusal, [], {})
        wanted = targets is None or node_id in targets
        if wanted and getattr(registry.classes[node["class_type"]], "OUTPUT_NODE", False) is True:
            outputs.append(node_id)
    if not outputs:
        return Verdict(problem("prompt_no_outputs", "Prompt has no outputs"), [], {})
    return _Validation(prompt, registry).verdict(outputs)


def _class_problem(node_id: str, node: dict[str, Any], registry: NodeRegistry) -> Problem | None:
    where = f"Node ID '#{node_id}'"
    if "class_type" not in node:
        return problem("invalid_prompt", "Cannot execute because a node is missing the class_type property.", where)
    if node["class_type"] not in registry.classes:
        return problem("invalid_prompt", f"Cannot execute because node {node['class_type']} does not exist.", where)
    return None


class _Validation:
    """One walk over a graph; remembers what it has judged."""

    def __init__(self, prompt: Prompt, registry: NodeRegistry) -> None:
        self._prompt = prompt
        self._registry = registry
        self._judged: dict[str, _NodeVerdict] = {}
        self._open: set[str] = set()

    def verdict(self, outputs: list[str]) -> Verdict:
        good: list[str] = []
        lines: list[str] = []
        node_errors: dict[str, dict[str, Any]] = {}
        for output in outputs:
            judged = self._judge_output(output)
            if judged.valid:
                good.append(output)
                continue
            lines += [f"{item['message']}: {item['details']}" for item in judged.problems]
            self._report(output, node_errors)
        if good:
            return Verdict(None, good, node_errors)
        message = "Prompt outputs failed validation"
        return Verdict(problem("prompt_outputs_failed_validation", message, "\n".join(lines)), [], node_errors)

    def _report(self, output: str, node_errors: dict[str, dict[str, Any]]) -> None:
        """Lists every bad node known so far under this output; like ComfyUI it over-reports on purpose."""
        for node_id, judged in self._judged.items():
            if judged.valid or not judged.problems:
                continue
            entry = node_errors.setdefault(
                node_id,
                {
                    "errors": judged.problems,
                    "dependent_outputs": [],
                    "class_type": self._prompt[node_id]["class_type"],
                },
            )
            entry["dependent_outputs"].append(output)

    def _judge_output(self, output: str) -> _NodeVerdict:
        try:
            return self._judge(output)
        except Exception as exc:  # a node's own VALIDATE_INPUTS or INPUT_TYPES may raise anything
            found = problem(
                "exception_during_validation",
                "Exception when validating node",
                str(exc),
                exception_type=type(exc).__name__,
                traceback=traceback.format_tb(exc.__traceback__),
            )
            self._judged[output] = _NodeVerdict(False, [found])
            return self._judged[output]

    def _judge(self, node_id: str) -> _NodeVerdict:
        if node_id in self._judged:
            return self._judged[node_id]
        if node_id in self._open:  # a loop: no node is to blame, so no problem is listed
            return _NodeVerdict(False)
        self._open.add(node_id)
        try:
            self._judged[node_id] = self._judge_new(node_id)
        finally:
            self._open.discard(node_id)
        return self._judged[node_id]

    def _judge_new(self, node_id: str) -> _NodeVerdict:
        node = self._prompt[node_id]
        node_class = self._registry.classes[node["class_type"]]
        inputs = node["inputs"]
        seen = _validator_inputs(node_class)
        received: dict[str, Any] = {}
        problems: list[Problem] = []
        valid = True
        for name, (group, kind, options) in declared_inputs(node_class).items():
            if name not in inputs:
                if group == "required":
                    problems.append(
                        problem("required_input_missing", "Required input is missing", name, input_name=name)
                    )
                continue
            try:
                if isinstance(inputs[name], list):
                    valid &= self._judge_link(name, inputs[name], kind, options, seen, received)
                else:
                    inputs[name] = _coerce(name, inputs[name], kind, options)
                    if not seen.covers(name):
                        _check_range(name, inputs[name], kind, options)
            except InvalidInputError as refusal:
                problems.append(refusal.problem)
        if seen:
            problems += self._own_problems(node_id, node_class, seen, received)
        return _NodeVerdict(valid and not problems, problems)

    def _judge_link(
        self, name: str, link: list[Any], kind: Any, options: Options, seen: _Seen, received: dict[str, Any]
    ) -> bool:
        config = [kind, options]
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            raise InvalidInputError(
                problem("bad_linked_input", message, name, input_name=name, input_config=config, received_value=link)
            )
        source, slot = link
        returns = self._registry.classes[self._prompt[source]["class_type"]].RETURN_TYPES
        received[name] = returns[slot]
        if "input_types" not in seen.names and not types_match(returns[slot], kind):
            details = f"{name}, received_type({returns[slot]}) mismatch input_type({kind})"
            raise InvalidInputError(
                problem(
                    "return_type_mismatch",
                    "Return type mismatch between linked nodes",
                    details,
                    input_name=name,
                    input_config=config,
                    received_type=returns[slot],
                    linked_node=link,
                )
            )
        try:
            return self._judge(source).valid
        except Exception as exc:  # broken links and raising validators further up are this input's problem
            self._judged[source] = _NodeVerdict(False, [_inner_problem(name, config, link, exc)])
            return False

    def _own_problems(
        self, node_id: str, node_class: NodeClass, seen: _Seen, received: dict[str, Any]
    ) -> list[Problem]:
        hidden = HiddenValues(self._prompt)
        gathered = gather_inputs(node_id, self._prompt[node_id], node_class, lambda *_: [None], hidden)
        filtered = {name: values for name, values in gathered.items() if seen.covers(name)}
        if "input_types" in seen.names:
            filtered["input_types"] = [received]
        answers = call_over_lists(
            node_class.VALIDATE_INPUTS, filtered, bool(getattr(node_class, "INPUT_IS_LIST", False))
        )
        return [
            problem(
                "custom_validation_failed",
                "Custom validation failed for node",
                name if answer is False else f"{name} - {answer}",
                input_name=name,
            )
            for name in filtered
            for answer in answers
            if answer is not True
        ]


@dataclass(frozen=True)
class _Seen:
    """Which inputs a node's own VALIDATE_INPUTS looks at; the built-in checks leave those alone."""

    names: frozenset[str] = frozenset()
    everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.names) or self.everything

    def covers(self, name: str) -> bool:
        return self.everything or name in self.names


def _validator_inputs(node_class: NodeClass) -> _Seen:
    validator = getattr(node_class, "VALIDATE_INPUTS", None)
    if validator is None:
        return _Seen()
    spec = inspect.getfullargspec(validator)
    names = frozenset(name for name in (*spec.args, *spec.kwonlyargs) if name not in ("cls", "s", "self"))
    return _Seen(names, spec.varkw is not None)


def types_match(received: Any, wanted: Any) -> bool:
    """Whether an output may feed an input: equal, either is `*`, or their comma lists share a type."""
    if received == wanted or received == "*" or wanted == "*":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return received == "COMBO" and isinstance(wanted, list)
    return not {part.strip() for part in received.split(",")}.isdisjoint(part.strip() for part in wanted.split(","))


def _coerce(name: str, value: Any, kind: Any, options: Options) -> Any:
    casts = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    try:
        if isinstance(value, dict) and "__value__" in value:
            value = value["__value__"]
        return casts[kind](value) if isinstance(kind, str) and kind in casts else value
    except Exception as exc:  # int() and float() raise three kinds, and a value's own methods may raise more
        raise InvalidInputError(
            problem(
                "invalid_input_type",
                f"Failed to convert an input value to a {kind} value",
                f"{name}, {value}, {exc}",
                input_name=name,
                input_config=[kind, options],
                received_value=value,
                exception_message=str(exc),
            )
        ) from exc


def _check_range(name: str, value: Any, kind: Any, options: Options) -> None:
    found = {"input_name": name, "input_config": [kind, options], "received_value": value}
    if "min" in options and value < options["min"]:
        message = f"Value {value} smaller than min of {options['min']}"
        raise InvalidInputError(problem("value_smaller_than_min", message, name, **found))
    if "max" in options and value > options["max"]:
        message = f"Value {value} bigger than max of {options['max']}"
        raise InvalidInputError(problem("value_bigger_than_max", message, name, **found))
    choices = kind if isinstance(kind, list | tuple) else options.get("options") if kind == "COMBO" else None
    if choices is not None and value not in choices:
        listed = str(list(choices))
        if len(choices) > MAX_LISTED_OPTIONS:
            listed, found["input_config"] = f"(list of length {len(choices)})", None
        raise InvalidInputError(
            problem("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {listed}", **found)
        )


def _inner_problem(name: str, config: list[Any], link: list[Any], exc: Exception) -> Problem:
    return problem(
        "exception_during_inner_validation",
        "Exception when validating inner node",
        str(exc),
        input_name=name,
        input_config=config,
        exception_message=str(exc),
        exception_type=type(exc).__name__,
        traceback=traceback.format_tb(exc.__traceback__),
        linked_node=link,
    )
