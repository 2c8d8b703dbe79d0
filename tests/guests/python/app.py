"""A flow in Python: what it is, and its one task, by the contract and without an SDK."""

import json

from wit_world import exports
from wit_world.exports import definition
from wit_world.imports import log
from wit_world.imports.waft_flow_types import Value


class Definition(exports.Definition):
    def describe(self):
        task = definition.Task(
            name="greet",
            description="",
            body=definition.Body_Function("greet"),
            mapped=False,
            conditions=[],
            trigger=definition.Trigger_AllSuccessful(),
            skip_on_upstream_skip=True,
            retries=None,
            timeout_ms=None,
            tags=[],
            cache=None,
            grants=definition.Grants([], [], [], []),
            limits=definition.Limits(None, None, None, None),
            on_lost=definition.OnLost.RETRY,
        )
        name = definition.Parameter("name", "", '{"type":"string"}', '"world"')
        edge = definition.Edge("greet", "name", definition.Source_Parameter("name"), definition.Mapping.WHOLE)
        return definition.Flow("py-hello", "Greets somebody.", [name], [task], [edge], [], "greet", None)


class Tasks(exports.Tasks):
    def run(self, function, inputs):
        name = json.loads(bytes(inputs[0].value.bytes))
        log.write(log.Level.INFO, f"greeting {name}")
        return Value("application/json", json.dumps(f"Hello, {name}!").encode())
