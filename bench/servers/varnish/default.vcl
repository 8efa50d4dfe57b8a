# Varnish as a page cache. @NAMES@ are filled in by bench/harness/products.py. Its log goes to shared memory, always; no
# varnishncsa writes it to a file, and none is counted.
vcl 4.1;

backend origin {
    .host = "127.0.0.1";
    .port = "@ORIGIN@";
}

sub vcl_recv {
    if (req.method == "GET" || req.method == "HEAD") {
        unset req.http.Cookie;
        return (hash);
    }
    return (pass);
}

sub vcl_deliver {
    set resp.http.X-Cache-Status = "MISS";
    if (obj.hits > 0) {
        set resp.http.X-Cache-Status = "HIT";
    }
}
