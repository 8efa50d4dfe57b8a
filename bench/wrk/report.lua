-- For wrk: prints what was measured as one line of JSON. No script runs while requests are made.
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('{"requests":%d,"bytes":%d,"seconds":%.6f,"bad":%d,"broken":%d,"p50":%d,"p99":%d}\n',
        summary.requests, summary.bytes, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
        latency:percentile(50), latency:percentile(99)))
end
