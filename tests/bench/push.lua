-- wrk's requests: a signed push under ever new delivery ids, since the queue keeps
-- a delivery that comes twice only once.
--
--     [SAME_DELIVERY=1] wrk … --script push.lua URL -- PAYLOAD_FILE SIGNATURE
--
-- With SAME_DELIVERY all requests are one, which costs wrk less: a forged push is
-- refused before its delivery id matters.
--
-- Prints: requests a second, p99 in ms, requests, answers that are no 2xx or 3xx,
-- broken connections. (wrk counts as an error status what is 400 or more.)

local request_head, request_tail
local number = 0

function init(arguments)
    wrk.method = "POST"
    wrk.body = assert(io.open(arguments[1], "rb")):read("*a")
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["X-GitHub-Event"] = "push"
    wrk.headers["X-Hub-Signature-256"] = arguments[2]
    local run = assert(io.open("/proc/sys/kernel/random/uuid")):read("*l")
    wrk.headers["X-GitHub-Delivery"] = run:sub(1, 24) .. "@"
    -- Formatting once is what keeps wrk faster than what it measures.
    local whole = wrk.format()
    local at = whole:find("@", 1, true)
    request_head, request_tail = whole:sub(1, at - 1), whole:sub(at + 1)
end

-- wrk looks whether this function exists when it has read the script.
if not os.getenv("SAME_DELIVERY") then
    function request()
        number = number + 1
        return request_head .. string.format("%012x", number) .. request_tail
    end
end

function done(summary, latency, _)
    local errors = summary.errors
    io.write(string.format("result %.1f %.3f %d %d %d\n",
        summary.requests / (summary.duration / 1e6),
        latency:percentile(99) / 1e3,
        summary.requests,
        errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
