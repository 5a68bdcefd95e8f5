-- Shows memvisor's balloon protocol in Wireshark: `wireshark -X lua_script:docs/balloon.lua FILE`, for files that
-- `memvisor balloon dump --pcapng` wrote. docs/balloon-protocol.md has the byte tables.

local balloon = Proto("memvisor_balloon", "memvisor balloon protocol")

local messages = {
    [1] = "START", [2] = "GET_TARGET", [3] = "LOCK", [4] = "UNLOCK", [5] = "STATS", [6] = "RELIEF", [7] = "STOP",
    [0x8001] = "STARTED", [0x8002] = "TARGET", [0x8003] = "LOCK_RESULT", [0x8004] = "UNLOCK_RESULT",
    [0x8007] = "STOPPED", [0x8008] = "RESET", [0x80ff] = "ERROR",
}
local statuses = {
    [0] = "OK", [1] = "INVALID", [2] = "ALREADY_LOCKED", [3] = "NOT_LOCKED", [4] = "BUSY", [5] = "NOT_NEEDED",
}
local codes = { [1] = "VERSION", [2] = "MALFORMED", [3] = "ORDER", [4] = "REFUSED", [5] = "CLOSING" }

local f = balloon.fields
f.version = ProtoField.uint16("balloon.version", "version")
f.type = ProtoField.uint16("balloon.type", "type", base.HEX, messages)
f.seq = ProtoField.uint32("balloon.seq", "seq")
f.min_version = ProtoField.uint16("balloon.min_version", "min_version")
f.max_version = ProtoField.uint16("balloon.max_version", "max_version")
f.capabilities = ProtoField.uint32("balloon.capabilities", "capabilities", base.HEX)
f.total_pages = ProtoField.uint64("balloon.total_pages", "total_pages")
f.name = ProtoField.string("balloon.name", "name")
f.balloon_pages = ProtoField.uint64("balloon.balloon_pages", "balloon_pages")
f.pages = ProtoField.uint64("balloon.pages", "pages")
f.vm = ProtoField.uint32("balloon.vm", "vm")
f.poll = ProtoField.uint32("balloon.poll_interval_ms", "poll_interval_ms")
f.max_ranges = ProtoField.uint32("balloon.max_ranges", "max_ranges")
f.balloon_max = ProtoField.uint64("balloon.balloon_max", "balloon_max")
f.target = ProtoField.uint64("balloon.target", "target")
f.number = ProtoField.uint32("balloon.number", "number")
f.start = ProtoField.uint32("balloon.start", "range start", base.HEX)
f.count = ProtoField.uint32("balloon.count", "range count")
f.status = ProtoField.uint32("balloon.status", "status", base.DEC, statuses)
f.tag = ProtoField.uint16("balloon.tag", "tag")
f.value = ProtoField.uint64("balloon.value", "value")
f.code = ProtoField.uint16("balloon.code", "code", base.DEC, codes)
f.text = ProtoField.string("balloon.text", "text")

-- Adds fields of fixed size that follow each other from `at` on; returns where they end.
local function add(tree, body, at, fields)
    for _, field in ipairs(fields) do
        tree:add_le(f[field[1]], body(at, field[2]))
        at = at + field[2]
    end
    return at
end

-- Adds a list: how many elements there are, then each of them.
local function list(tree, body, at, fields)
    local number = body(at, 4):le_uint()
    tree:add_le(f.number, body(at, 4))
    at = at + 4
    for _ = 1, number do
        at = add(tree, body, at, fields)
    end
end

local function text(tree, body, at, field)
    local length = body(at, 2):le_uint()
    if length > 0 then tree:add(f[field], body(at + 2, length)) end
end

local runs = { { "start", 4 }, { "count", 4 }, { "status", 4 } }
local ranges = { { "start", 4 }, { "count", 4 } }

local bodies = {
    [1] = function(tree, body)
        add(tree, body, 8, { { "min_version", 2 }, { "max_version", 2 }, { "capabilities", 4 } })
        add(tree, body, 24, { { "total_pages", 8 } })
        text(tree, body, 32, "name")
    end,
    [2] = function(tree, body) add(tree, body, 8, { { "total_pages", 8 }, { "balloon_pages", 8 } }) end,
    [3] = function(tree, body) list(tree, body, 8, ranges) end,
    [4] = function(tree, body) list(tree, body, 8, ranges) end,
    [5] = function(tree, body) list(tree, body, 8, { { "tag", 2 }, { "value", 8 } }) end,
    [6] = function(tree, body) add(tree, body, 8, { { "pages", 8 } }) end,
    [0x8001] = function(tree, body)
        add(tree, body, 8, {
            { "capabilities", 4 }, { "vm", 4 }, { "poll", 4 }, { "max_ranges", 4 }, { "balloon_max", 8 },
        })
    end,
    [0x8002] = function(tree, body) add(tree, body, 8, { { "pages", 8 } }) end,
    [0x8003] = function(tree, body) list(tree, body, add(tree, body, 8, { { "target", 8 } }), runs) end,
    [0x8004] = function(tree, body) list(tree, body, add(tree, body, 8, { { "target", 8 } }), runs) end,
    [0x80ff] = function(tree, body)
        add(tree, body, 8, { { "code", 2 } })
        text(tree, body, 10, "text")
    end,
}

function balloon.dissector(buffer, packet, root)
    if buffer:len() < 8 then return 0 end
    local kind = buffer(2, 2):le_uint()
    local name = messages[kind] or "unknown"
    local from = kind < 0x8000 and "agent" or "host"
    packet.cols.protocol = "BALLOON"
    packet.cols.src = from
    packet.cols.dst = from == "agent" and "host" or "agent"
    packet.cols.info = name .. " seq " .. buffer(4, 4):le_uint()
    local tree = root:add(balloon, buffer(), "Balloon: " .. name)
    add(tree, buffer, 0, { { "version", 2 }, { "type", 2 }, { "seq", 4 } })
    if bodies[kind] then bodies[kind](tree, buffer) end
    return buffer:len()
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, balloon)
