# For the other scripts: says what goes on, and installs what is missing (Debian, Ubuntu).

say() { printf '\n== %s\n' "$*"; }

install_packages() { # what for, Debian packages
    local what_for=$1 as_root=()
    shift
    say "installing $* ($what_for)"
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq || true
    # RUNLEVEL: a package's own service is not wanted, what needs servers starts them itself.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@" || {
        echo "could not install $*; install it by hand and run this again" >&2
        exit 1
    }
}
