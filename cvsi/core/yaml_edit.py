"""A YAML text with one value changed or one entry added: comments, anchors, merges, order and all other bytes stay.

The text is not dumped again. PyYAML's nodes say where a value begins and ends in the text, and only that part is
replaced, so whatever is not the value keeps its bytes. The result is read again before it is returned.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from cvsi.core.errors import CvsiError

ALIAS = re.compile(r"\*[^\s,\[\]{}]+")
ANCHOR = re.compile(r"&[^\s,\[\]{}]+[ \t]*")
PROPERTIES = re.compile(r"(?:[&!][^\s,\[\]{}]*(?:\s+|$))*")
COMMENT = re.compile(r"(?:^|\s)#", flags=re.M)
LONGEST = 300  # characters of a key
WIDTH = 2**31  # a dumped value is one line
MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Change:
    """A changed text, and the key at which it was changed; `merged_from`: the key whose value is overridden there."""

    text: str
    key: str
    merged_from: str = ""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also keeps where in the text each alias is."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.spans: dict[tuple[int, Any], tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            self.spans[id(parent), _place(index)] = event.start_mark.index, event.end_mark.index
        return super().compose_node(parent, index)


def _place(index: Any) -> Any:
    return id(index) if isinstance(index, yaml.Node) else index


@dataclass(frozen=True)
class _Value:
    """A value in the tree: its node, the key in the file, where its alias is, and where a merge took it from."""

    node: yaml.Node
    key: str
    alias: tuple[int, int] | None = None
    merged_into: tuple[yaml.MappingNode, str] | None = None  # the mapping that has `<<`, and the key's name
    below: bool = False  # not merged itself, but a part of what is merged


class Document:
    """A YAML text with its nodes; raises CvsiError, which begins with `name`, for a text that is not a YAML mapping."""

    def __init__(self, text: str, name: str) -> None:
        """Read the text."""
        self.text, self.name = text, name
        root, self.spans = _compose(text, name)
        if not isinstance(root, yaml.MappingNode):
            raise CvsiError(f"{name}: not a mapping of keys to values")
        self.root = root
        self.data = _guarded(name, lambda: _construct(root))
        self._homes = dict[int, str]()
        self._fill_homes(self.root, "")

    def get(self, key: str) -> Any:
        """The value at a dotted key, aliases and merges resolved; raises CvsiError where there is none."""
        return _construct(self._find(key).node)

    def home(self, key: str) -> str:
        """The key at which a value is written, behind aliases and merges; raises CvsiError where there is none."""
        return self._find(key).key

    def set(self, key: str, value: str) -> Change:
        """The text with another value, given as YAML, at a dotted key; list items are numbered from 0.

        A key of an aliased mapping is changed at its anchor. A key that a mapping has by a merge (`<<`) is added to
        that mapping. Raises CvsiError for a key that does not exist, for one below a merged mapping, for a value that
        is no YAML, and where a comment or an anchor that is used elsewhere would be lost.
        """
        wanted, is_alias = self._value(value)
        target = self._find(key)
        if target.merged_into is not None:
            mapping, name = target.merged_into
            if target.below:
                raise self._behind_merge(target.key, mapping, name)
            where = f"{self._homes[id(mapping)]}.{name}"
            at = next(self._end_of(mapping, key_, item) for key_, item in mapping.value if key_.tag == MERGE)
            texts = (self._added(mapping, name, text, at) for text in _spellings(value, wanted))
            return self._first_right(texts, key, wanted, is_alias, where, target.key)
        start, end = target.alias or self._span(target.node, key)
        prefix, suffix = self._around(start, end)
        texts = (prefix + text + suffix for text in _spellings(value, wanted))
        return self._first_right(texts, key, wanted, is_alias, target.key, "")

    def anchors(self) -> dict[str, str]:
        """The anchors of the file's mappings and lists by the dotted key at which they are written."""
        found = {}
        for node, key in self._nodes():
            properties = PROPERTIES.match(self.text[node.start_mark.index :])
            if properties and (anchor := ANCHOR.search(properties[0])):
                found[key] = anchor[0].strip()[1:]
        return found

    def start(self, section: str) -> int:
        """The position in the text at which a top-level value begins, -1 where there is none."""
        return next((item.start_mark.index for key, item in self.root.value if key.value == section), -1)

    def extend(self, key: str, item: str) -> str:
        """The text with one more item, given as YAML, at the end of a list; raises CvsiError where it has no place."""
        node = self._find(key).node
        if not isinstance(node, yaml.SequenceNode):
            raise CvsiError(f"{self.name}: {key} is not a list; add {item} by hand")
        if node.flow_style:
            last = self._end_of(node, len(node.value) - 1, node.value[-1]) if node.value else node.start_mark.index
            at = last if node.value else self.text.index("[", last) + 1
            text = f"{self.text[:at]}{', ' if node.value else ''}{item}{self.text[at:]}"
        else:
            newline = "\r\n" if "\r\n" in self.text else "\n"
            at = self._line_end(self._end(node))
            indent = int(node.start_mark.column)
            text = f"{self.text[:at]}{newline}{' ' * indent}- {item}{self.text[at:]}"
        try:
            after = Document(text, self.name)
            complete = _same(after.get(key), [*_construct(node), yaml.safe_load(item)])
            if complete and len(list(changed(self.data, after.data))) == 1:  # the list is no other value's, too
                return text
        except CvsiError:
            pass
        raise CvsiError(f"{self.name}: {item} cannot be added to {key} in this layout; add it by hand")

    def has(self, key: str) -> bool:
        """Whether there is a value at a dotted key."""
        try:
            return bool(self._find(key))
        except CvsiError:
            return False

    def add(self, key: str, value: str) -> Change:
        """The text with a new key at the end of its mapping, at the anchor where that is aliased; `value` is YAML.

        Raises CvsiError where the mapping is missing or empty, and for a value that is no YAML.
        """
        parent, _, name = key.rpartition(".")
        wanted, is_alias = self._value(value)
        mapping = self._find(parent).node
        if not isinstance(mapping, yaml.MappingNode) or not mapping.value:
            raise CvsiError(f"{self.name}: {parent} is not a mapping with keys; add {name} by hand")
        where = f"{self._homes[id(mapping)]}.{name}"
        at = self._end_of(mapping, *mapping.value[-1])
        texts = (self._added(mapping, name, text, at) for text in _spellings(value, wanted))
        return self._first_right(texts, key, wanted, is_alias, where, "")

    def append(self, section: str, name: str, block: str, anchor: str = "") -> str:
        """The text with an entry `name` at the end of a top-level mapping: `block` is its YAML without indentation.

        `anchor` is a name by which later parts of the file can refer to the entry. Raises CvsiError where the section
        is missing or has the name already.
        """
        node = self._find(section).node
        if not isinstance(node, yaml.MappingNode):
            raise CvsiError(f"{self.name}: {section} is not a mapping; add {name} by hand")
        if any(key.value == name for key, _ in node.value):
            raise CvsiError(f"{self.name}: {section}.{name} exists already; choose another name")
        newline = "\r\n" if "\r\n" in self.text else "\n"
        if not node.value:  # `methods: {}`
            start, end = node.start_mark.index, node.end_mark.index
            head, indent, rest = self.text[:start].rstrip(" "), 2, self.text[end:]
        elif node.flow_style:
            raise CvsiError(f"{self.name}: {section} is written in one line; give each entry a line of its own")
        else:
            at = self._line_end(self._end(node))
            head, rest, indent = self.text[:at], self.text[at:], _column(node)
        head_line = f"{name}: &{anchor}" if anchor else f"{name}:"
        lines = [head_line, *(f"  {line}" if line else "" for line in block.rstrip("\n").split("\n"))]
        entry = newline.join(" " * indent + line if line else "" for line in lines)
        text = f"{head}{newline}{entry}{rest if rest else newline}"
        try:
            after = read(text, self.name)
            added = isinstance(after[section].pop(name), dict)
        except (CvsiError, KeyError, TypeError, AttributeError):
            added = False
        if not added or not _same(after, self.data):
            raise CvsiError(f"{self.name}: {section}.{name} cannot be added to this layout; add it by hand")
        return text

    def _value(self, value: str) -> tuple[Any, bool]:
        """A value as data, or an alias of an anchor of the file; raises CvsiError for what is neither."""
        if ALIAS.fullmatch(value.strip()):
            anchors = re.findall(r"&([^\s,\[\]{}]+)", self.text)
            if value.strip()[1:] not in anchors:
                raise CvsiError(f"{self.name}: no anchor for {value.strip()}; there are: {', '.join(sorted(anchors))}")
            return None, True
        if not value.strip():
            raise CvsiError("the value is empty; give one, or null")
        try:
            if any(isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) for event in yaml.parse(value)):
                raise CvsiError(
                    f"{value[:80]!r}: an anchor or an alias inside a value; write them into the file by hand"
                )
            return yaml.safe_load(value), False
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise CvsiError(f"{value[:80]!r}: the value is not valid YAML: {problem[:200]}") from None
        except RecursionError:
            raise CvsiError(f"{value[:80]!r}: the value is nested too deeply") from None

    def _first_right(
        self, texts: Iterator[str], key: str, wanted: Any, is_alias: bool, where: str, merged_from: str
    ) -> Change:
        """The first spelling that, read again, has the wanted value at the key."""
        reason = ""
        for text in texts:
            if text == self.text:
                return Change(text, where, merged_from)
            try:
                after = Document(text, self.name)
                if is_alias or _same(after.get(key), wanted):
                    return Change(text, where, merged_from)
            except CvsiError as error:
                reason = f" ({error})"
        raise CvsiError(f"{self.name}: {key} cannot be changed in the text{reason}; change it by hand")

    def _find(self, key: str) -> _Value:
        if len(key) > LONGEST:
            raise CvsiError(f"{self.name}: no key {key[:80]}...; there are: {', '.join(map(str, self.data))}")
        parts = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
        found = next(self._values(_Value(self.root, ""), parts), None)
        if found is None:
            raise self._no_key(parts)
        return found

    def _values(self, value: _Value, parts: list[str]) -> Iterator[_Value]:
        """The value below `value` by the parts of a dotted key; a name may have dots itself."""
        if not parts:
            yield value
            return
        for length in range(1, len(parts) + 1):
            child = self._child(value, ".".join(parts[:length]))
            if child is not None:
                yield from self._values(child, parts[length:])

    def _child(self, value: _Value, name: str) -> _Value | None:
        node, home = value.node, value.key
        if isinstance(node, yaml.SequenceNode) and name.isascii() and name.isdigit() and int(name) < len(node.value):
            return self._at(value, node, int(name), node.value[int(name)], name)
        if not isinstance(node, yaml.MappingNode):
            return None
        for key, item in node.value:
            if key.tag != MERGE and isinstance(key, yaml.ScalarNode) and key.value == name:
                return self._at(value, node, key, item, name)
        for source in _merged(node):
            inner = self._child(_Value(source, self._homes.get(id(source), home)), name)
            if inner is not None:
                below = value.merged_into is not None
                return _Value(inner.node, inner.key, inner.alias, value.merged_into or (node, name), below)
        return None

    def _at(self, parent: _Value, node: yaml.Node, index: Any, item: yaml.Node, name: str) -> _Value:
        """An item of a node: of an alias, the key is the anchor's, once something below it is looked up."""
        home = self._homes.get(id(node), parent.key)
        alias = self.spans.get((id(node), _place(index)))
        key = f"{home}.{name}" if home else name
        return _Value(item, key, alias, parent.merged_into, parent.merged_into is not None)

    def _fill_homes(self, node: yaml.Node, key: str) -> None:
        """Note the key at which each collection is written; an anchor comes before its aliases."""
        if id(node) in self._homes or isinstance(node, yaml.ScalarNode):
            return
        self._homes[id(node)] = key
        items = node.value if isinstance(node, yaml.MappingNode) else list(enumerate(node.value))
        for name, item in items:
            text = str(name) if isinstance(name, int) else str(name.value)
            self._fill_homes(item, f"{key}.{text}" if key else text)

    def _nodes(self) -> Iterator[tuple[yaml.Node, str]]:
        """Every collection of the file, once, with the key at which it is written."""
        todo, seen = [self.root], set[int]()
        while todo:
            node = todo.pop()
            if id(node) in seen or isinstance(node, yaml.ScalarNode):
                continue
            seen.add(id(node))
            yield node, self._homes[id(node)]
            todo += [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]

    def _span(self, node: yaml.Node, key: str) -> tuple[int, int]:
        """Where a node's text is, without its anchor; raises CvsiError where a comment in it would be lost."""
        start = node.start_mark.index
        end = self._end(node)
        whole = self.text[start:end]
        properties = PROPERTIES.match(whole)
        if properties and node.start_mark.index != node.end_mark.index:
            anchor = ANCHOR.search(properties[0])
            # A tag is part of the old value; the anchor, by which others have the value, stays.
            if anchor and properties[0].startswith("&"):
                start += len(anchor[0])
            elif anchor:
                raise CvsiError(f"{self.name}: {key} has a tag before its anchor; change it by hand")
        if isinstance(node, yaml.CollectionNode):
            bare = list(self.text[start:end])
            for leaf in _leaves(node):
                for at in range(max(leaf.start_mark.index, start), min(leaf.end_mark.index, end)):
                    bare[at - start] = "x"
            if COMMENT.search("".join(bare)):
                raise CvsiError(f"{self.name}: {key} has comments inside, which would be lost; set its keys one by one")
        return start, end

    def _around(self, start: int, end: int) -> tuple[str, str]:
        """The text before and after a value, with a blank between a key's colon (or an anchor) and the value."""
        before, after = self.text[:start], self.text[end:]
        stripped = before.rstrip(" \t\r\n")
        if "\n" in before[len(stripped) :]:  # a block below its key: the new value is on the key's line
            line = before[before.rfind("\n", 0, len(stripped)) + 1 : len(stripped)]
            if not COMMENT.search(line):
                before = stripped
        if before and before[-1] not in " \t\n[{,":
            before += " "
        return before, after

    def _added(self, mapping: yaml.MappingNode, name: str, value: str, at: int) -> str:
        """The text with a key added to a mapping after the entry that ends at a position."""
        if mapping.flow_style:
            return f"{self.text[:at]}, {name}: {value}{self.text[at:]}"
        at = self._line_end(at)
        newline = "\r\n" if "\r\n" in self.text else "\n"
        return f"{self.text[:at]}{newline}{' ' * _column(mapping)}{name}: {value}{self.text[at:]}"

    def _end(self, node: yaml.Node) -> int:
        """The end of a node's text: of a block, that of its last value, since the block's own mark is lines later."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            key, item = last if isinstance(last, tuple) else (len(node.value) - 1, last)
            return self._end_of(node, key, item)
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            return len(self.text[: node.end_mark.index].rstrip())
        return node.end_mark.index

    def _end_of(self, parent: yaml.Node, key: Any, item: yaml.Node) -> int:
        """The end of a value, or of the alias in its stead."""
        alias = self.spans.get((id(parent), _place(key)))
        return alias[1] if alias else self._end(item)

    def _line_end(self, at: int) -> int:
        """The end of the line that has a position, before its line break."""
        match = re.compile(r"\r?\n|\Z").search(self.text, at)
        assert match is not None
        return match.start()

    def _behind_merge(self, written: str, mapping: yaml.MappingNode, name: str) -> CvsiError:
        """The error for a key inside a value that a mapping has by a merge, with the two ways to change it."""
        own = f"{self._homes[id(mapping)]}.{name}"
        content = one_line(_construct(self._find(own).node))
        return CvsiError(
            f"{self.name}: {own} comes from a merge (<<): set {written}, where it is written, for all that share it, "
            f"or first give {own} a value of its own: cvsi set {own} '{content}'"
        )

    def _no_key(self, parts: list[str]) -> CvsiError:
        """The error for a key that does not exist, with the names there are."""
        for length in range(len(parts) - 1, -1, -1):
            parent = next(self._values(_Value(self.root, ""), parts[:length]), None)
            if parent is not None:
                content = _construct(parent.node)
                below = f"{'.'.join(parts[:length])} has" if length else "there are"
                name = ".".join(parts)
                if isinstance(content, dict):
                    return CvsiError(
                        f"{self.name}: no key {name}; {below}: {', '.join(map(str, content)) or 'no keys'}"
                    )
                if isinstance(content, list):
                    return CvsiError(f"{self.name}: no key {name}; {below} {len(content)} items, numbered from 0")
                return CvsiError(
                    f"{self.name}: no key {name}; {below} no keys, only the value {one_line(content)[:80]}"
                )
        raise AssertionError("the document itself is a mapping")


def read(text: str, name: str) -> Any:
    """A YAML text as data; raises CvsiError, which begins with `name`, for a text that is not valid YAML."""
    return _guarded(name, lambda: yaml.safe_load(text))


def one_line(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=WIDTH, allow_unicode=True, sort_keys=False)
    return " ".join(text.removesuffix("...\n").split())


def changed(before: Any, after: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys, as tuples of names, of all values that differ between two documents."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            if name in before and name in after:
                yield from changed(before[name], after[name], (*key, str(name)))
            else:
                yield (*key, str(name))
    elif not _same(before, after):
        yield key


def _guarded(name: str, function: Any) -> Any:
    try:
        return function()
    except (yaml.YAMLError, ValueError) as error:
        raise CvsiError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise CvsiError(f"{name}: nested too deeply") from None


def _compose(text: str, name: str) -> tuple[yaml.Node | None, dict[tuple[int, Any], tuple[int, int]]]:
    def compose() -> tuple[yaml.Node | None, dict[tuple[int, Any], tuple[int, int]]]:
        loader = _Loader(text)
        try:
            return loader.get_single_node(), loader.spans
        finally:
            loader.dispose()

    return _guarded(name, compose)  # type: ignore[no-any-return]


def _construct(node: yaml.Node) -> Any:
    """A node as data. Merging changes a node, so a copy of the tree is constructed."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(_copy(node, {}))
    finally:
        loader.dispose()


def _copy(node: yaml.Node, made: dict[int, yaml.Node]) -> yaml.Node:
    if isinstance(node, yaml.ScalarNode):
        return node
    if id(node) not in made:
        copy = made[id(node)] = type(node)(node.tag, [], node.start_mark, node.end_mark)
        items = node.value
        if isinstance(node, yaml.MappingNode):
            copy.value = [(_copy(key, made), _copy(item, made)) for key, item in items]
        else:
            copy.value = [_copy(item, made) for item in items]
    return made[id(node)]


def _merged(node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
    """The mappings that `<<` merges into a mapping, the one that counts first."""
    for key, item in node.value:
        if key.tag == MERGE:
            for source in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                if isinstance(source, yaml.MappingNode):
                    yield source


def _column(mapping: yaml.MappingNode) -> int:
    """The indentation of a mapping's keys; the mapping itself may begin with an anchor."""
    return int(mapping.value[0][0].start_mark.column)


def _leaves(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    else:
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                yield from _leaves(part)


def _spellings(value: str, wanted: Any) -> Iterator[str]:
    """Ways to write a value in one line: as it was given, as YAML, as JSON."""
    given = value.strip()
    if "\n" not in given and "\r" not in given and not COMMENT.search(given):
        yield given
    text = yaml.safe_dump([wanted], default_flow_style=True, width=WIDTH, allow_unicode=True, sort_keys=False)
    yield text.strip()[1:-1]
    try:
        yield json.dumps(wanted, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError):  # a date, a set
        return


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of one type: 1, 1.0 and true differ."""
    return repr(one) == repr(other)
