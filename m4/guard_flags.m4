# Flag probes.  Each adds to a shell variable, so that a compiler or linker that lacks a flag loses
# only that flag, and the user's CFLAGS and LDFLAGS are never written to.

# GUARD_CC_FLAGS(VARIABLE, FLAGS): append to VARIABLE each of FLAGS that $CC takes.
# -Werror makes clang refuse an unknown -W option, which it otherwise only mentions.
AC_DEFUN([GUARD_CC_FLAGS], [
  AC_LANG_PUSH([C])
  guard_save_CFLAGS=$CFLAGS
  for guard_flag in $2; do
    CFLAGS="$guard_save_CFLAGS -Werror $guard_flag"
    AC_MSG_CHECKING([whether $CC takes $guard_flag])
    AC_COMPILE_IFELSE([AC_LANG_PROGRAM([], [])],
      [AC_MSG_RESULT([yes]); AS_VAR_APPEND([$1], [" $guard_flag"])],
      [AC_MSG_RESULT([no])])
  done
  CFLAGS=$guard_save_CFLAGS
  AC_LANG_POP([C])
])

# GUARD_LD_FLAG(VARIABLE, FLAG, [IF-NOT]): append FLAG to VARIABLE if a shared object links with it.
AC_DEFUN([GUARD_LD_FLAG], [
  AC_LANG_PUSH([C])
  guard_save_LDFLAGS=$LDFLAGS
  guard_save_CFLAGS=$CFLAGS
  LDFLAGS="$guard_save_LDFLAGS -shared $2"
  CFLAGS="$guard_save_CFLAGS -fPIC"
  AC_MSG_CHECKING([whether shared objects link with $2])
  AC_LINK_IFELSE([AC_LANG_SOURCE([[int guard_probe; int hidden_probe;]])],
    [AC_MSG_RESULT([yes]); AS_VAR_APPEND([$1], [" $2"])],
    [AC_MSG_RESULT([no]); $3])
  LDFLAGS=$guard_save_LDFLAGS
  CFLAGS=$guard_save_CFLAGS
  AC_LANG_POP([C])
])
