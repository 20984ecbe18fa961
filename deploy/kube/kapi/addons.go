package main

// The two things that a bare control plane lacks: names of services, and volumes. Both are polled: this is for a
// handful of objects on one machine.

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

var (
	mu    sync.RWMutex
	names = map[string][][4]byte{}
)

// addons serves DNS at DNS_ADDR and makes volumes below VOLUMES, until the process ends.
func addons() {
	cfg, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		panic(err)
	}
	cs := kubernetes.NewForConfigOrDie(cfg)
	go serveDNS(os.Getenv("DNS_ADDR"))
	ctx := context.Background()
	for {
		learn(ctx, cs)
		provision(ctx, cs, os.Getenv("VOLUMES"))
		time.Sleep(500 * time.Millisecond)
	}
}

func ip4(s string) (r [4]byte, ok bool) {
	ip := net.ParseIP(s).To4()
	if ip == nil {
		return r, false
	}
	copy(r[:], ip)
	return r, true
}

// learn reads Services and their endpoints into the names that DNS answers.
func learn(ctx context.Context, cs *kubernetes.Clientset) {
	svcs, err := cs.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "services:", err)
		return
	}
	slices, err := cs.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "endpoints:", err)
		return
	}
	m := map[string][][4]byte{}
	publish := map[string]bool{}
	for _, s := range svcs.Items {
		n := s.Name + "." + s.Namespace + ".svc.cluster.local."
		publish[n] = s.Spec.PublishNotReadyAddresses
		if ip, ok := ip4(s.Spec.ClusterIP); ok {
			m[n] = append(m[n], ip)
		}
	}
	for _, e := range slices.Items {
		n := e.Labels["kubernetes.io/service-name"] + "." + e.Namespace + ".svc.cluster.local."
		for _, ep := range e.Endpoints {
			if ep.Conditions.Ready != nil && !*ep.Conditions.Ready && !publish[n] {
				continue
			}
			for _, a := range ep.Addresses {
				ip, ok := ip4(a)
				if !ok {
					continue
				}
				if svcHeadless(svcs.Items, e.Labels["kubernetes.io/service-name"], e.Namespace) {
					m[n] = append(m[n], ip)
				}
				if ep.Hostname != nil {
					m[*ep.Hostname+"."+n] = append(m[*ep.Hostname+"."+n], ip)
				}
			}
		}
	}
	mu.Lock()
	names = m
	mu.Unlock()
}

// svcHeadless says whether a Service has no address of its own.
func svcHeadless(l []corev1.Service, name, ns string) bool {
	for _, s := range l {
		if s.Name == name && s.Namespace == ns {
			return s.Spec.ClusterIP == "None"
		}
	}
	return false
}

func serveDNS(addr string) {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		panic(err)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			continue
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		name := strings.ToLower(q.Questions[0].Name.String())
		mu.RLock()
		ips, ok := names[name]
		mu.RUnlock()
		q.Response, q.Authoritative, q.RecursionAvailable = true, true, true
		q.Additionals = nil
		if !ok {
			q.RCode = dnsmessage.RCodeNameError
		} else if q.Questions[0].Type == dnsmessage.TypeA {
			for _, ip := range ips {
				q.Answers = append(q.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
					Body:   &dnsmessage.AResource{A: ip}})
			}
		}
		if out, err := q.Pack(); err == nil {
			pc.WriteTo(out, from)
		}
	}
}

// provision makes a local volume for every claim of the class local-dir. Local volumes obey fsGroup, which host
// paths do not.
func provision(ctx context.Context, cs *kubernetes.Clientset, root string) {
	claims, err := cs.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "claims:", err)
		return
	}
	for _, c := range claims.Items {
		if c.Status.Phase != corev1.ClaimPending || c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != "local-dir" || c.Spec.VolumeName != "" {
			continue
		}
		name := "pv-" + string(c.UID)
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "volume:", err)
			continue
		}
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
			Capacity: c.Spec.Resources.Requests, AccessModes: c.Spec.AccessModes, StorageClassName: "local-dir",
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef:                      &corev1.ObjectReference{Namespace: c.Namespace, Name: c.Name, UID: c.UID},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "kubernetes.io/os", Operator: "In", Values: []string{"linux"}}}}}}}}}
		if _, err := cs.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil && !errors.IsAlreadyExists(err) {
			fmt.Fprintln(os.Stderr, "volume:", err)
		}
	}
}
