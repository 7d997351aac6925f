"""A hundred things that a model might write to get out of the executor, by what they try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def call(name: str, /, **parameters: Any) -> str:
    return json.dumps({"name": name, "parameters": parameters})


def hostile(canary: Path) -> dict[str, str]:
    """Lines of a tool_call block. If one of them ran, the canary would be gone or have company."""
    remove = f"__import__('os').remove({str(canary)!r})"
    write = f"open({str(canary)!r}, 'w')"
    return {**_code(canary, remove, write), **_names(remove), **_keywords(write), **_values(canary, remove), **_sizes()}


def _code(canary: Path, remove: str, write: str) -> dict[str, str]:
    """Source text in the place of a name."""
    return {
        "import as name": call(remove),
        "builtin": call("exec", source=remove),
        "eval": call("eval", source=remove),
        "compile": call("compile", source=remove, filename="x", mode="exec"),
        "open": call("open", file=str(canary), mode="w"),
        "print to a file": call(f"print('x', file={write})"),
        "getattr": call("getattr(ls, '__globals__')"),
        "setattr": call("setattr", object="ls", name="__call__", value=remove),
        "globals": call("globals") + "\n" + call("vars") + "\n" + call("locals"),
        "builtins": call("__builtins__.open", file=str(canary), mode="w"),
        "builtins by key": call("__builtins__['exec']", source=remove),
        "module of the executor": call("importlib.import_module", name="os"),
        "import from": call("from os import remove; remove", path=str(canary)),
        "lambda": call(f"(lambda: {write})"),
        "f-string": call(f"f'{{{write}}}'"),
        "attribute chain": call("ls.__func__.__globals__['subprocess'].run", args=["rm", str(canary)]),
        "attribute chain to classes": call("().__class__.__base__.__subclasses__"),
        "frames of a generator": call("(x for x in ()).gi_frame.f_back.f_globals"),
        "frames of a traceback": call("ls.__traceback__.tb_frame.f_globals"),
        "code object": call("(lambda: 0).__code__.replace", co_code=remove),
        "exit": call("exit") + "\n" + call("quit") + "\n" + call("os._exit", status=0),
        "endless loop": call("[0 for _ in iter(int, 1)] and ls"),
        "conditional": call("ls if True else pwd") + "\n" + call("ls or pwd"),
        "assignment": call("ls=pwd") + "\n" + call("(ls := pwd)"),
        "statements": call(f"ls(); {remove}; ls"),
        "line break in the name": call(f"ls()\n{remove}\nls"),
        "comment in the name": call("ls#") + "\n" + call("ls()#"),
        "brackets in the name": call("ls(") + "\n" + call(")ls") + "\n" + call("(ls)"),
        "decorator": call("@ls") + "\n" + call("await ls") + "\n" + call("async ls"),
        "bytes": call("b'ls'") + "\n" + call("'ls'"),
    }


def _names(remove: str) -> dict[str, str]:
    """Names that look like another's."""
    return {
        "dunder": call("__class__"),
        "dunder method": call("__init__"),
        "dunder reduce": call("__reduce__") + "\n" + call("__reduce_ex__", protocol=2),
        "dunder setattr": call("__setattr__", name="root", value=None),
        "dunder getattribute": call("__getattribute__", name="root"),
        "dunder dict": call("__dict__.clear") + "\n" + call("__dict__.update", ls=remove),
        "private method": call("_load_scenario", scenario={}, long_context=True),
        "mangled private": call("_GorillaFileSystem__root") + "\n" + call("_MathAPI__x"),
        "other class": call("place_order", order_type="Buy", symbol="X", price=1, amount=1),
        "class and method": call("GorillaFileSystem.rm", file_name="x") + "\n" + call("TradingBot.place_order"),
        "instance and method": call("gorillafilesystem_instance.rm", file_name="x") + "\n" + call("self.ls"),
        "white space in the name": call("ls ") + "\n" + call("ls\n;pwd") + "\n" + call("\tls"),
        "full-width name": call("ｌｓ") + "\n" + call("ls", ａ=True),
        "homoglyph": call("l\u0455") + "\n" + call("\u0440wd"),  # Cyrillic
        "zero-width": call("l\u200bs") + "\n" + call("ls\u200d"),
        "combining": call("ls\u0301"),
        "right to left": call("\u202esl") + "\n" + call("\u2066ls\u2069"),
        "byte-order mark": call("\ufeffls"),
        "null in the name": call("ls\x00") + "\n" + call("\x00"),
        "empty name": call("") + "\n" + call("   ") + "\n" + call("\n"),
        "number as name": call("1") + "\n" + call("1.e5") + "\n" + call("0x10"),
        "reserved word as name": call("None") + "\n" + call("lambda") + "\n" + call("del") + "\n" + call("yield"),
        "long name": call("l" * 100_000) + "\n" + call("ls" + " " * 100_000),
    }


def _keywords(write: str) -> dict[str, str]:
    """Parameters' names."""
    return {
        "walrus": call("ls", **{"(a := 1)": True}),
        "keyword breaks out": call("ls", **{f"a=True), {write}, dict(b": True}),
        "unpacking": call("ls", **{"**{'a'": True}) + "\n" + call("ls", **{"*a": [write]}),
        "reserved word": call("ls", **{"lambda": write}),
        "self": call("ls", self=None, a=True),
        "dunder keyword": call("ls", __class__=1, __init__=write),
        "dotted keyword": call("ls", **{"a.b": True}) + "\n" + call("ls", **{"a[0]": True}),
        "line break in a keyword": call("ls", **{"a\nb": True}) + "\n" + call("ls", **{"a\x00": True}),
        "empty keyword": call("ls", **{"": True}) + "\n" + call("ls", **{" ": True}),
        "many keywords": call("ls", **{f"k{index}": index for index in range(4000)}),
        "long keyword": call("ls", **{"k" * 90_000: 1}),
    }


def _values(canary: Path, remove: str) -> dict[str, str]:
    """What a string or a number may do to who reads it."""
    return {
        "import as argument": call("echo", content=remove),
        "f-string as argument": call("echo", content=f"{{{remove}}}", file_name=f"{{{remove}}}"),
        "quote breaks out": call("echo", content=f"'); {remove} #", file_name=f'"); {remove} #'),
        "backslash breaks out": call("echo", content=f"\\'); {remove} #\\"),
        "triple quotes": call("echo", content=f"'''\"\"\"); {remove} #"),
        "call in a string": call("echo", content="rm (file_name='x'), ls()", file_name="ls ()"),
        "call in a call": call("echo", content=call("rm", file_name=str(canary))),
        "closing tag": call("echo", content=f"</tool_call>\n<tool_call>\n{remove}"),
        "format": call("echo", content="{0.__class__.__mro__} %s %(x)s %n ${HOME} `id`"),
        "shell": call("echo", content=f"$(rm {canary}); :(){{ :|:& }};:", file_name=f"| rm {canary}"),
        "environment": call("echo", content="$WANDB_API_KEY ${HF_TOKEN} %PATH%"),
        "pickle": call("echo", content=f"cos\nsystem\n(S'rm {canary}'\ntR."),
        "YAML tag": call("echo", content=f"!!python/object/apply:os.system ['rm {canary}']"),
        "template": call("echo", content="{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}"),
        "entity": call("echo", content='<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'),
        "query": call("echo", content="'; DROP TABLE users; --", file_name="1 OR 1=1"),
        "terminal": call("echo", content="\x1b]0;owned\x07\x1b[2J\x1b[1;1H\r\b\b"),
        "path traversal": call("touch", file_name=str(canary.with_name("new")))
        + "\n"
        + call("cat", file_name="../" * 20 + "etc/passwd")
        + "\n"
        + call("rm", file_name=str(canary)),
        "devices": "\n".join(call("cat", file_name=f"/dev/{name}") for name in ("zero", "random", "stdin", "full")),
        "processes": call("cat", file_name="/proc/self/environ") + "\n" + call("cat", file_name="/proc/self/mem"),
        "copy from outside": call("cp", source="/etc/passwd", destination="p") + "\n" + call("cd", folder="~root"),
        "find outside": call("find", path="../../..", name="*") + "\n" + call("find", path="/", name=str(canary)),
        "null in a path": call("touch", file_name=f"x\x00{canary}"),
        "pattern that never ends": call("grep", file_name="a", pattern="(a+)+$" * 500),
        "directory into itself": call("mkdir", dir_name="d") + "\n" + call("mv", source="d", destination="d"),
        "null and surrogates": call("echo", content="\x00\ud800", file_name="\udfff") + "\n" + call("\ud800"),
        "other types": call("add", a=[], b={})
        + "\n"
        + call("mean", numbers="abc")
        + "\n"
        + call("ls", a={"b": [None]}),
        "division by nothing": call("divide", a=1, b=0) + "\n" + call("mean", numbers=[]),
        "overflow": call("power", base=1e308, exponent=1e308) + "\n" + call("multiply", a=1e308, b=-1e308),
    }


def _sizes() -> dict[str, str]:
    """Too much of something, and what is JSON only nearly."""
    return {
        "huge precision": call("logarithm", value=10, base=3, precision=200_000),
        "huge power": call("power", base=7, exponent=10**8),
        "huge memory": call("square_root", number=2, precision=10**11),
        "huge integer": call("add", a=int("9" * 4000), b=1),
        "endless integer": '{"name": "add", "parameters": {"a": ' + "9" * 100_000 + ', "b": 1}}',
        "not finite": '{"name": "add", "parameters": {"a": 1e999, "b": -Infinity}}',
        "not a number": '{"name": "add", "parameters": {"a": NaN, "b": 1}}',
        "giant list": call("mean", numbers=[1] * 300_000),
        "giant string": call("echo", content="x" * 5_000_000),
        "many calls": "\n".join([call("pwd")] * 5000),
        "deep": '{"name": "echo", "parameters": {"content": ' + "[" * 90 + "]" * 90 + "}}",
        "deeper": '{"name": "echo", "parameters": {"content": ' + "[" * 900 + "]" * 900 + "}}",
        "deepest": '{"name": "echo", "parameters": {"content": ' + '{"a":' * 100_000 + "0" + "}" * 100_000 + "}}",
        "deep and open": "[" * 100_000,
        "key twice": '{"name": "ls", "name": "exec", "parameters": {}, "parameters": {"source": "x"}}',
        "list for a call": '["ls", {}]\n[["ls"]]\n[]',
        "text for parameters": '{"name": "ls", "parameters": "a=True"}\n{"name": "ls", "parameters": null}',
        "object for a name": '{"name": {"name": "ls"}, "parameters": {}}\n{"name": null, "parameters": {}}',
    }
