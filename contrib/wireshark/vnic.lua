-- Wireshark's side of a capture of vnic (`vnic serve --capture FILE.pcapng`): makes fields of what stands in the packets' comments,
-- to be seen and filtered by:
--
--   vnic.desc.page_cache == 1     frames with a descriptor that leads into a file's own pages
--   vnic.label contains "big.bin"    vnic.desc.count > 4    vnic.header.gso_type == 1    vnic.verdict == "copied"
--
-- Copy it into a plugin folder (Help, About Wireshark, Folders: Personal Lua Plugins), or: tshark -X lua_script:vnic.lua -r FILE.
--
-- Place: called for each packet when Wireshark has taken it apart. It reads the comment because a plugin sees nothing else of a
-- packet's pcapng options; vnic/src/link/capture/comment.rs in vnic's source has the grammar. A comment that begins like vnic's
-- and does not go on so is told as malformed, never as one without descriptors.

local vnic = Proto("vnic", "vnic: how the frame lay in the ring")

local f = {
  queue = ProtoField.string("vnic.queue", "Queue"),
  verdict = ProtoField.string("vnic.verdict", "Payload", base.UNICODE, "zero-copy, copied or mixed; absent where it is not known"),
  head = ProtoField.uint16("vnic.head", "Head descriptor or buffer id"),
  indirect = ProtoField.bool("vnic.indirect", "Indirect table"),
  written = ProtoField.uint32("vnic.written", "Bytes written by the device"),
  count = ProtoField.uint32("vnic.desc.count", "Descriptors"),
  cached = ProtoField.uint32("vnic.desc.page_cache_count", "Descriptors into files' own pages"),
  addr = ProtoField.uint64("vnic.desc.addr", "Address", base.HEX),
  len = ProtoField.uint32("vnic.desc.len", "Bytes"),
  writable = ProtoField.bool("vnic.desc.writable", "Device-writable"),
  page_cache = ProtoField.bool("vnic.desc.page_cache", "A file's own page"),
  more = ProtoField.uint32("vnic.desc.more", "More of the same"),
  unseen = ProtoField.uint32("vnic.desc.unseen", "More that are not listed"),
  label = ProtoField.string("vnic.label", "Whose memory"),
  flags = ProtoField.uint8("vnic.header.flags", "flags", base.HEX),
  gso_type = ProtoField.uint8("vnic.header.gso_type", "gso_type", base.HEX),
  gso_size = ProtoField.uint16("vnic.header.gso_size", "gso_size"),
  hdr_len = ProtoField.uint16("vnic.header.hdr_len", "hdr_len"),
  csum_start = ProtoField.uint16("vnic.header.csum_start", "csum_start"),
  csum_offset = ProtoField.uint16("vnic.header.csum_offset", "csum_offset"),
}
vnic.fields = f

local malformed = ProtoExpert.new("vnic.malformed", "The comment is not as vnic writes it", expert.group.MALFORMED, expert.severity.WARN)
vnic.experts = { malformed }

local comment = Field.new("frame.comment")

local GSO = { tcpv4 = 1, udp = 3, tcpv6 = 4, ["udp-l4"] = 5 }

-- A reader of one text, from its beginning on: take(pattern) gives what the pattern's captures have, if it goes on so.
local function reader(text)
  local at = 1
  return {
    take = function(pattern)
      local found = { text:find("^" .. pattern, at) }
      if not found[1] then return nil end
      at = found[2] + 1
      return found[3] or true, found[4], found[5]
    end,
    ended = function() return at > #text end,
    rest = function() return text:sub(at) end,
  }
end

-- Is it a label of a file's own page? `nil`: of several things, or of none that is known.
local function is_of_file(label)
  if label:find(", and other memory", 1, true) then return nil end
  return label:find("^/") ~= nil or label:find("^inode %d") ~= nil or label == "a file" or label:find("^a file page %d") ~= nil
end

-- The buffers of a chain; `nil`: not as expected.
local function buffers(text)
  local list = { unseen = 0 }
  repeat
    local way, addr, len = text.take(" ([RW]) 0x(%x+)%+(%d+)")
    if not way then return nil end
    local label = text.take(" (%b())")
    local buffer = { writable = way == "W", addr = UInt64.fromhex(addr), len = tonumber(len), more = 0 }
    if label then buffer.label = label:sub(2, -2) end
    local more, bytes = text.take(" %-> … (%d+) more, (%d+) bytes")
    if more then buffer.more, buffer.more_bytes = tonumber(more), tonumber(bytes) end
    table.insert(list, buffer)
    local unseen = text.take(" %-> … (%d+) more")
    if unseen then list.unseen = tonumber(unseen) end
  until not text.take(" %->")
  return list
end

-- What the comment says; `nil`: not vnic's; and whether it was as expected to its end.
local function parse(comment)
  if not comment:find("^%S+ head %d+:") then return nil end
  local text = reader(comment)
  local told = { queue = text.take("(%S+)"), chains = {}, header = {} }
  local queue = told.queue
  repeat
    if text.take(" …") then break end
    local other = text.take(" (%S+) head")
    local head
    if other then
      queue, head = other, text.take(" (%d+):")
    else
      head = text.take(" head (%d+):")
    end
    local indirect = head and text.take(" indirect%((%d+)%):")
    local list = head and buffers(text)
    if not list then return told, false end
    local written = text.take(", written (%d+)")
    table.insert(told.chains, { queue = queue, head = tonumber(head), indirect = indirect ~= nil, buffers = list, written = tonumber(written) })
  until not text.take(";")
  local header = told.header
  header.csum_start, header.csum_offset = text.take(", csum (%d+)%+(%d+)")
  -- Of what is received no header is on record.
  local is_sent = #told.chains > 0 and not told.chains[1].buffers[1].writable
  header.flags = is_sent and (header.csum_start and 1 or 0) or nil
  local size, kind = text.take(", gso (%d+) (%S-)%f[,%z]")
  if size then
    local name = kind:gsub("%+ecn$", "")
    header.gso_size = size
    header.gso_type = (GSO[name] or tonumber(name) or 0) + (name ~= kind and 0x80 or 0)
  end
  header.hdr_len = text.take(", hdr (%d+)")
  local more = text.take(", flags 0x(%x+)")
  if more then header.flags = tonumber(more, 16) end
  told.verdict = text.take(", (zero%-copy)$") or text.take(", (copied)$") or text.take(", (mixed)$")
  return told, text.ended()
end

local function show(told, tree)
  local count, cached = 0, 0
  for _, chain in ipairs(told.chains) do
    local under = tree:add(vnic, "Chain of " .. chain.queue)
    under:add(f.head, chain.head):set_generated()
    under:add(f.indirect, chain.indirect):set_generated()
    if chain.written then under:add(f.written, chain.written):set_generated() end
    for _, buffer in ipairs(chain.buffers) do
      local all = 1 + buffer.more
      count = count + all
      local of_file = buffer.label and is_of_file(buffer.label)
      if of_file then cached = cached + all end
      local words = string.format("%s 0x%s, %d bytes%s", buffer.writable and "W" or "R", buffer.addr:tohex():gsub("^0+(%x)", "%1"), buffer.len,
        buffer.label and ": " .. buffer.label or "")
      local one = under:add(vnic, words)
      one:add(f.addr, buffer.addr):set_generated()
      one:add(f.len, buffer.len):set_generated()
      one:add(f.writable, buffer.writable):set_generated()
      if buffer.label then one:add(f.label, buffer.label):set_generated() end
      if of_file ~= nil then one:add(f.page_cache, of_file):set_generated() end
      if buffer.more > 0 then one:add(f.more, buffer.more):append_text(", " .. buffer.more_bytes .. " bytes"):set_generated() end
    end
    if chain.buffers.unseen > 0 then
      count = count + chain.buffers.unseen
      under:add(f.unseen, chain.buffers.unseen):set_generated()
    end
  end
  tree:add(f.count, count):set_generated()
  if cached > 0 then tree:add(f.cached, cached):set_generated() end
  for _, name in ipairs({ "flags", "gso_type", "gso_size", "hdr_len", "csum_start", "csum_offset" }) do
    local value = tonumber(told.header[name])
    if value then tree:add(f[name], value):set_generated() end
  end
  if told.verdict then tree:add(f.verdict, told.verdict):set_generated() end
end

function vnic.dissector(tvb, pinfo, root)
  for _, info in ipairs({ comment() }) do
    local told, whole = parse(info.value)
    if told then
      local tree = root:add(vnic, tvb:range(0, 0))
      tree:add(f.queue, told.queue):set_generated()
      show(told, tree)
      if not whole then tree:add_proto_expert_info(malformed) end
    end
  end
end

register_postdissector(vnic)
