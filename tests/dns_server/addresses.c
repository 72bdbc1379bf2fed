/* Prints the addresses of a name as this program's C library resolves it: built with musl, as on Alpine. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *one;
    char text[INET6_ADDRSTRLEN];
    int error = argc == 2 ? getaddrinfo(argv[1], 0, &hints, &found) : EAI_NONAME;
    if (error) {
        printf("%s\n", gai_strerror(error));
        return 2;
    }
    for (one = found; one; one = one->ai_next)
        if (!getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST))
            puts(text);
    return 0;
}
