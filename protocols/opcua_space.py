"""The address space below `Objects/Devices`, answered from a view instead of a table of nodes.

    Objects/Devices                           ns=2;s=Devices
        <device name>                         ns=2;s=<uid>
            Status                            ns=2;s=<uid>#Status
            SetStatus(String) → Boolean       ns=2;s=<uid>#SetStatus
            <signal key>                      ns=2;s=<uid>/<signal key>
                EURange, EngineeringUnits     ns=2;s=<uid>/<signal key>#EURange …

Keys never contain `#`, so no signal can take the place of another node. `<uid>/Status` and `<uid>/SetStatus` are also
understood where the device has no such signal. Every other node is one of the standard's own (namespace 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from asyncua import ua

from protocols import opcua_values as values
from protocols.opcua_view import View
from protocols.served import Device, Signal, Visitor

NAMESPACE: Final = "urn:iiot-portal:devices"
INDEX: Final = 2
FOLDER: Final = "Devices"
UID_LENGTH: Final = 26
Ids = ua.ObjectIds
_READ: Final = 1 << ua.AccessLevel.CurrentRead
_WRITE: Final = 1 << ua.AccessLevel.CurrentWrite
_HISTORY: Final = 1 << ua.AccessLevel.HistoryRead


def text_of(node: ua.NodeId) -> str | None:
    """The text of a node of ours, None for any other."""
    is_text = node.NamespaceIndex == INDEX and isinstance(node.Identifier, str)
    return node.Identifier if is_text else None


def node_id(text: str) -> ua.NodeId:
    """The node with this text."""
    return ua.NodeId(text, INDEX, ua.NodeIdType.String)


def uid_of(text: str) -> str:
    """The uid at the beginning of a node's text; it need not exist."""
    return text[:UID_LENGTH]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of ours. `value`: what a variable shows; `data_type`: 0 for what is no variable."""

    text: str
    name: str
    kind: ua.NodeClass
    type_definition: int
    parent: str
    reference: int
    namespace: int = INDEX
    data_type: int = 0
    rank: int = -1
    access: int = 0
    user_access: int = 0
    value: Callable[[], ua.DataValue] | None = None
    signal: Signal | None = None

    @property
    def browse_name(self) -> ua.QualifiedName:
        return ua.QualifiedName(self.name, self.namespace)


def _fixed(content: Any, kind: ua.VariantType = ua.VariantType.ExtensionObject) -> ua.DataValue:
    is_list = isinstance(content, list)
    return ua.DataValue(ua.Variant(content, kind, is_array=is_list or None), values.GOOD)


class Space:
    """What one session sees of a view. Everything that it is asked for must have been loaded into the view before."""

    def __init__(self, view: View, visitor: Visitor) -> None:
        self.view = view
        self.visitor = visitor

    # --- finding ------------------------------------------------------------------------------------------------------

    def find(self, text: str) -> Node | None:
        """The node with this text; None when there is none, or when it is not for this session: both read the same."""
        if text == FOLDER:
            return _folder()
        device = self.view.devices.get(uid_of(text))
        if device is None:
            return None
        rest = text[UID_LENGTH:]
        if not rest:
            return _device(device)
        key, mark, part = rest[1:].partition("#")
        if rest[0] == "/":
            signal = self.view.signals.get(device.uid, {}).get(key)
            if signal is not None:
                return self._signal(device, signal) if not mark else _property(device, signal, part)
            if mark or key not in ("Status", "SetStatus"):
                return None
        return self._own(device, rest[1:]) if rest[0] in "#/" else None

    def _own(self, device: Device, name: str) -> Node | None:
        """What every device has."""
        if name == "Status":
            return self._status(device)
        if name == "SetStatus":
            return _method(device)
        if name in ("SetStatus#InputArguments", "SetStatus#OutputArguments"):
            return _arguments(device, name.partition("#")[2])
        return None

    def children(self, node: Node) -> Iterator[Node]:
        """The nodes below one."""
        if node.text == FOLDER:
            yield from map(_device, self.view.devices.values())
        elif node.kind is ua.NodeClass.Object:
            device = self.view.devices[node.text]
            yield self._status(device)
            yield _method(device)
            for signal in self.view.signals.get(device.uid, {}).values():
                yield self._signal(device, signal)
        elif node.kind is ua.NodeClass.Method:
            device = self.view.devices[uid_of(node.text)]
            yield _arguments(device, "InputArguments")
            yield _arguments(device, "OutputArguments")
        elif node.signal is not None:
            device = self.view.devices[uid_of(node.text)]
            for part in ("EURange", "EngineeringUnits"):
                found = _property(device, node.signal, part)
                if found is not None:
                    yield found

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _status(self, device: Device) -> Node:
        value = partial(self._status_value, device.uid)
        return Node(
            f"{device.uid}#Status", "Status", ua.NodeClass.Variable, Ids.BaseDataVariableType, device.uid,
            Ids.HasComponent, data_type=Ids.String, access=_READ, user_access=_READ, value=value,
        )  # fmt: skip

    def _status_value(self, uid: str) -> ua.DataValue:
        return self.view.statuses.get(uid) or values.text_value(self.view.devices[uid].status, None)

    def _signal(self, device: Device, signal: Signal) -> Node:
        access = _READ | _HISTORY | (_WRITE if signal.writable else 0)
        is_analog = signal.type == "number" and values.eu_range(signal) is not None
        return Node(
            f"{device.uid}/{signal.key}", signal.key, ua.NodeClass.Variable,
            Ids.AnalogItemType if is_analog else Ids.BaseDataVariableType, device.uid, Ids.HasComponent,
            data_type=values.DATA_TYPES[signal.type][0], access=access,
            user_access=access if self.visitor.may_command else access & ~_WRITE,
            value=partial(self._newest, device.uid, signal), signal=signal,
        )  # fmt: skip

    def _newest(self, uid: str, signal: Signal) -> ua.DataValue:
        found = self.view.values.get((uid, signal.key))
        return found or values.bad(ua.StatusCodes.BadWaitingForInitialData)

    # --- references ---------------------------------------------------------------------------------------------------

    def references(self, node: Node) -> Iterable[ua.ReferenceDescription]:
        """To its type, to what is above it and to what is below it (OPC UA Part 3 section 7)."""
        if node.type_definition:
            yield _reference(Ids.HasTypeDefinition, ua.NodeId(node.type_definition), True, ua.NodeClass.ObjectType)
        if node.text == FOLDER:
            yield _reference(Ids.Organizes, ua.NodeId(Ids.ObjectsFolder), False, ua.NodeClass.Object)
        else:
            parent = self.find(node.parent)
            if parent is not None:
                yield describe(parent, node.reference, forward=False)
        for child in self.children(node):
            yield describe(child, child.reference, forward=True)

    # --- attributes ---------------------------------------------------------------------------------------------------

    def read(self, node: Node, attribute: int) -> ua.DataValue:
        """One attribute (OPC UA Part 3 section 5)."""
        if attribute == ua.AttributeIds.Value and node.value is not None:
            return node.value()
        found = self._attribute(node, attribute)
        return (
            ua.DataValue(found, values.GOOD) if found is not None else values.bad(ua.StatusCodes.BadAttributeIdInvalid)
        )

    def _attribute(self, node: Node, attribute: int) -> ua.Variant | None:
        ids, kinds = ua.AttributeIds, ua.VariantType
        common = {
            ids.NodeId: lambda: ua.Variant(node_id(node.text), kinds.NodeId),
            ids.NodeClass: lambda: ua.Variant(node.kind, kinds.Int32),
            ids.BrowseName: lambda: ua.Variant(node.browse_name, kinds.QualifiedName),
            ids.DisplayName: lambda: ua.Variant(ua.LocalizedText(node.name), kinds.LocalizedText),
            ids.Description: lambda: ua.Variant(ua.LocalizedText(""), kinds.LocalizedText),
            ids.WriteMask: lambda: ua.Variant(0, kinds.UInt32),
            ids.UserWriteMask: lambda: ua.Variant(0, kinds.UInt32),
        }
        special = {
            ua.NodeClass.Object: {ids.EventNotifier: lambda: ua.Variant(0, kinds.Byte)},
            ua.NodeClass.Method: {
                ids.Executable: lambda: ua.Variant(True, kinds.Boolean),
                ids.UserExecutable: lambda: ua.Variant(self.visitor.may_change, kinds.Boolean),
            },
            ua.NodeClass.Variable: {
                ids.DataType: lambda: ua.Variant(ua.NodeId(node.data_type), kinds.NodeId),
                ids.ValueRank: lambda: ua.Variant(node.rank, kinds.Int32),
                ids.AccessLevel: lambda: ua.Variant(node.access, kinds.Byte),
                ids.UserAccessLevel: lambda: ua.Variant(node.user_access, kinds.Byte),
                ids.MinimumSamplingInterval: lambda: ua.Variant(0.0, kinds.Double),
                ids.Historizing: lambda: ua.Variant(node.signal is not None, kinds.Boolean),
            },
        }
        make = common.get(attribute) or special[node.kind].get(attribute)
        return make() if make is not None else None


def describe(node: Node, reference: int, forward: bool) -> ua.ReferenceDescription:
    """A reference to a node."""
    made = _reference(reference, node_id(node.text), forward, node.kind)
    made.BrowseName = node.browse_name
    made.DisplayName = ua.LocalizedText(node.name)
    if node.type_definition:
        made.TypeDefinition = ua.NodeId(node.type_definition)
    return made


def _reference(kind: int, target: ua.NodeId, forward: bool, node_class: ua.NodeClass) -> ua.ReferenceDescription:
    made = ua.ReferenceDescription()
    made.ReferenceTypeId, made.NodeId = ua.NodeId(kind), target
    made.IsForward, made.NodeClass = forward, node_class
    return made


def _folder() -> Node:
    return Node(FOLDER, FOLDER, ua.NodeClass.Object, Ids.FolderType, "", Ids.Organizes)


def _device(device: Device) -> Node:
    return Node(device.uid, device.name, ua.NodeClass.Object, Ids.BaseObjectType, FOLDER, Ids.Organizes)


def _method(device: Device) -> Node:
    return Node(f"{device.uid}#SetStatus", "SetStatus", ua.NodeClass.Method, 0, device.uid, Ids.HasComponent)


def _arguments(device: Device, name: str) -> Node:
    argument = ua.Argument()
    argument.ValueRank, argument.ArrayDimensions = -1, []
    if name == "InputArguments":
        argument.Name, argument.DataType = "status", ua.NodeId(Ids.String)
        argument.Description = ua.LocalizedText("online or offline")
    else:
        argument.Name, argument.DataType = "stored", ua.NodeId(Ids.Boolean)
        argument.Description = ua.LocalizedText("whether it was stored")
    return Node(
        f"{device.uid}#SetStatus#{name}", name, ua.NodeClass.Variable, Ids.PropertyType, f"{device.uid}#SetStatus",
        Ids.HasProperty, namespace=0, data_type=Ids.Argument, rank=1, access=_READ, user_access=_READ,
        value=partial(_fixed, [argument]),
    )  # fmt: skip


def _property(device: Device, signal: Signal, part: str) -> Node | None:
    """EURange or EngineeringUnits of a signal; None where it has none."""
    if part == "EURange":
        content: Any = values.eu_range(signal)
        data_type = Ids.Range
    elif part == "EngineeringUnits":
        content = values.engineering_units(signal.unit) if signal.unit else None
        data_type = Ids.EUInformation
    else:
        return None
    if content is None:
        return None
    text = f"{device.uid}/{signal.key}"
    return Node(
        f"{text}#{part}", part, ua.NodeClass.Variable, Ids.PropertyType, text, Ids.HasProperty, namespace=0,
        data_type=data_type, access=_READ, user_access=_READ, value=partial(_fixed, content),
    )  # fmt: skip
