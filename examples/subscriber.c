/* Print topic and JSON of each event of a running worker.
 *
 *   apt-get install gcc libzmq3-dev
 *   cc -Wall -o subscriber examples/subscriber.c -lzmq
 *   ./subscriber ipc:///run/ast-stream/feed.sock event/bark/
 *
 * Without a topic all events are printed. The worker publishes its status once a second: when nothing
 * has come for five seconds it is gone, and a new socket finds the next one.
 */

#include <stdio.h>
#include <string.h>
#include <zmq.h>

enum { PATIENCE_MS = 5000, LINGER_MS = 0 };

static void *connect_to(void *context, const char *endpoint, const char *topic)
{
    void *feed = zmq_socket(context, ZMQ_SUB);
    int linger = LINGER_MS, patience = PATIENCE_MS;
    zmq_setsockopt(feed, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(feed, ZMQ_RCVTIMEO, &patience, sizeof patience);
    zmq_setsockopt(feed, ZMQ_SUBSCRIBE, topic, strlen(topic));
    zmq_setsockopt(feed, ZMQ_SUBSCRIBE, "status/", strlen("status/"));
    if (zmq_connect(feed, endpoint) != 0) {
        fprintf(stderr, "cannot connect to %s: %s\n", endpoint, zmq_strerror(zmq_errno()));
        zmq_close(feed);
        return NULL;
    }
    return feed;
}

/* Receive one frame; return whether the message has another one, or -1 if nothing came. */
static int receive(void *feed, zmq_msg_t *frame)
{
    if (zmq_msg_recv(frame, feed, 0) < 0)
        return -1;
    return zmq_msg_more(frame);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s ENDPOINT [TOPIC]\n", argv[0]);
        return 2;
    }
    const char *topic = argc > 2 ? argv[2] : "event/";
    void *context = zmq_ctx_new();
    void *feed = connect_to(context, argv[1], topic);
    zmq_msg_t name, body;
    zmq_msg_init(&name);
    zmq_msg_init(&body);
    while (feed != NULL) {
        int more = receive(feed, &name);
        if (more < 0) {
            zmq_close(feed);
            feed = connect_to(context, argv[1], topic);
            continue;
        }
        while (more == 1)
            more = receive(feed, &body);
        if (zmq_msg_size(&name) < strlen(topic)
            || memcmp(zmq_msg_data(&name), topic, strlen(topic)) != 0)
            continue; /* a status: the worker is there */
        printf("%.*s %.*s\n", (int)zmq_msg_size(&name), (char *)zmq_msg_data(&name),
               (int)zmq_msg_size(&body), (char *)zmq_msg_data(&body));
        fflush(stdout);
    }
    zmq_ctx_term(context);
    return 1;
}
