# Nothing but words.
# coding is not a cookie here
